//! Leaves out of a session whatever a difference can do without, so that a person can read it.

/// Parts of `0..count` that are still needed. Halves are left out first, single ones last.
#[derive(Debug)]
pub(super) struct Shrink {
    kept: Vec<usize>,
    /// What is tried to be left out: so many from here on.
    at: usize,
    part: usize,
}

impl Shrink {
    /// All of them are needed, as far as is known.
    pub(super) fn new(count: usize) -> Self {
        Self { kept: (0..count).collect(), at: 0, part: count.div_ceil(2).max(1) }
    }

    /// What might be enough; `None` when nothing more can be left out.
    pub(super) fn proposal(&self) -> Option<Vec<usize>> {
        let left_out = self.at..self.at + self.part;
        let stays = |(place, _): &(usize, &usize)| !left_out.contains(place);
        let rest = self.kept.iter().enumerate().filter(stays).map(|(_, number)| *number);
        (self.at < self.kept.len()).then(|| rest.collect())
    }

    /// Whether the proposal was enough.
    pub(super) fn learn(&mut self, proposal: Vec<usize>, enough: bool) {
        if enough {
            self.kept = proposal;
        } else {
            self.at += self.part;
        }
        if self.at >= self.kept.len() && self.part > 1 {
            (self.at, self.part) = (0, self.part.div_ceil(2));
        }
    }

    /// What is needed.
    pub(super) fn kept(self) -> Vec<usize> {
        self.kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_matters_is_kept() {
        let mut shrink = Shrink::new(40);
        while let Some(proposal) = shrink.proposal() {
            let enough = proposal.contains(&3) && proposal.contains(&17);
            shrink.learn(proposal, enough);
        }
        assert_eq!(shrink.kept(), [3, 17]);
        assert!(Shrink::new(0).proposal().is_none());
    }
}
