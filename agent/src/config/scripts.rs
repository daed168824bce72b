//! `[scripts]`: programs of the operators that run at set occasions.

use std::time::Duration;

use pgherd_common::config::{ConfigValue, Reader, Section};
use toml::Value;

/// A program with its arguments, as they are typed: blanks part them, quotes hold them together. No shell reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    words: Vec<String>,
}

impl Line {
    fn parse(text: &str) -> Result<Self, String> {
        let words = split(text)?;
        match words.first() {
            Some(program) if program.starts_with('/') => Ok(Self { words }),
            Some(program) => Err(format!("{program:?} is no absolute path")),
            None => Err("it is empty".to_owned()),
        }
    }

    /// The program.
    pub fn program(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The words, with a value for each `%x`.
    pub fn fill(&self, value: impl Fn(char) -> String) -> Vec<String> {
        let fill = |word: &String| {
            let mut filled = String::new();
            let mut letters = word.chars();
            while let Some(letter) = letters.next() {
                match (letter, letter == '%') {
                    (_, true) => match letters.next() {
                        Some('%') | None => filled.push('%'),
                        Some(name) => filled += &value(name),
                    },
                    (letter, false) => filled.push(letter),
                }
            }
            filled
        };
        self.words.iter().map(fill).collect()
    }

    /// The `%x` in it.
    fn placeholders(&self) -> Vec<char> {
        let found = std::cell::RefCell::new(Vec::new());
        self.fill(|name| {
            found.borrow_mut().push(name);
            String::new()
        });
        found.into_inner()
    }
}

impl ConfigValue for Line {
    const KIND: &'static str = "a command line, for example \"/etc/pgherd/script.sh %p\"";

    fn from_value(value: &Value) -> Result<Self, String> {
        let text = value.as_str().ok_or_else(|| format!("found {} {value}", value.type_str()))?;
        Self::parse(text).map_err(|error| format!("found {text:?}: {error}"))
    }
}

/// Parts words at blanks. `'` holds everything together as it is, `"` all but `\`; outside of quotes `\` takes the next
/// letter as it is.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', None | Some('"')) => {
                let next = letters.next().ok_or("it ends with a \\")?;
                word.get_or_insert_default().push(next);
            }
            (letter, Some(open)) if letter == open => quote = None,
            ('\'' | '"', None) => {
                word.get_or_insert_default();
                quote = Some(letter);
            }
            (blank, None) if blank.is_whitespace() => words.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("a {quote} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scripts {
    /// Has to succeed on the new primary before it is promoted.
    pub fence: Option<Line>,
    /// On the new primary, once it serves.
    pub post_promotion: Option<Line>,
    /// On the others, once a new primary is chosen.
    pub remote_pre_promotion: Option<Line>,
    /// On the others, once it serves.
    pub remote_post_promotion: Option<Line>,
    /// On a node whose database has failed.
    pub db_failure: Option<Line>,
    /// On a primary that was cut off and fenced.
    pub primary_isolated: Option<Line>,
    /// On a node that is back in service.
    pub resumed: Option<Line>,
    /// A node serves.
    pub load_balancer_attach: Option<Line>,
    /// A node serves no more.
    pub load_balancer_detach: Option<Line>,
    /// Gets every notification.
    pub notification: Option<Line>,
    /// How long each of them may take.
    pub timeout: Duration,
    /// How long the one that stops a promotion may take.
    pub fence_timeout: Duration,
    /// The operators' own word on the database.
    pub monitor: Option<Monitor>,
}

/// A script that says whether the database does what it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Monitor {
    /// It fails if the database has.
    pub line: Line,
    /// How often it runs.
    pub interval: Duration,
    /// How long it may take.
    pub timeout: Duration,
    /// It is told, and nothing is done about it.
    pub safe_mode: bool,
}

/// Each hook, and the placeholders that it knows.
const PLACEHOLDERS: [(&str, &[char]); 11] = [
    ("fence", &['p', 'f']),
    ("post_promotion", &['p', 'f']),
    ("remote_pre_promotion", &['p']),
    ("remote_post_promotion", &['p']),
    ("db_failure", &[]),
    ("primary_isolated", &[]),
    ("resumed", &[]),
    ("load_balancer_attach", &['h', 't']),
    ("load_balancer_detach", &['h', 't']),
    ("notification", &[]),
    ("custom_monitor", &[]),
];

impl Scripts {
    pub(super) fn read(r: &mut Reader, mut s: Section) -> Option<Self> {
        let [
            fence,
            post_promotion,
            remote_pre_promotion,
            remote_post_promotion,
            db_failure,
            primary_isolated,
            resumed,
            load_balancer_attach,
            load_balancer_detach,
            notification,
            custom_monitor,
        ] = PLACEHOLDERS.map(|(key, known)| script(r, &mut s, key, known));
        let timeout = s.positive(r, "timeout", "\"30s\"");
        let fence_timeout = s.positive(r, "fence_timeout", "\"10s\"");
        let interval = s.positive(r, "custom_monitor_interval", "\"10s\"");
        let monitor_timeout = s.positive(r, "custom_monitor_timeout", "\"10s\"");
        let safe_mode = s.or(r, "custom_monitor_safe_mode", "false");
        s.finish(r);
        let (interval, monitor_timeout, safe_mode) = (interval?, monitor_timeout?, safe_mode?);
        let monitor =
            custom_monitor.map(|line| Monitor { line, interval, timeout: monitor_timeout, safe_mode });
        Some(Self {
            fence,
            post_promotion,
            remote_pre_promotion,
            remote_post_promotion,
            db_failure,
            primary_isolated,
            resumed,
            load_balancer_attach,
            load_balancer_detach,
            notification,
            timeout: timeout?,
            fence_timeout: fence_timeout?,
            monitor,
        })
    }

    /// The script of a hook, by its key.
    pub fn by_name(&self, name: &str) -> Option<&Line> {
        match name {
            "fence" => self.fence.as_ref(),
            "post_promotion" => self.post_promotion.as_ref(),
            "remote_pre_promotion" => self.remote_pre_promotion.as_ref(),
            "remote_post_promotion" => self.remote_post_promotion.as_ref(),
            "db_failure" => self.db_failure.as_ref(),
            "primary_isolated" => self.primary_isolated.as_ref(),
            "resumed" => self.resumed.as_ref(),
            "load_balancer_attach" => self.load_balancer_attach.as_ref(),
            "load_balancer_detach" => self.load_balancer_detach.as_ref(),
            _ => None,
        }
    }
}

fn script(r: &mut Reader, s: &mut Section, key: &str, known: &[char]) -> Option<Line> {
    let line: Line = s.optional(r, key)?;
    let strange = line.placeholders().into_iter().find(|name| !known.contains(name));
    if let Some(name) = strange {
        let known: Vec<String> = known.iter().map(|name| format!("%{name}")).collect();
        let known = if known.is_empty() {
            "knows no placeholders".to_owned()
        } else {
            format!("knows {}", known.join(" and "))
        };
        r.problem(
            &s.path_of(key),
            format!("%{name} is not known: this script {known}; %% is a percent sign"),
        );
        return None;
    }
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parted_as_in_a_shell_and_by_no_shell() {
        for (text, words) in [
            ("/bin/x a  b", vec!["/bin/x", "a", "b"]),
            (r#"/bin/x "a b" 'c "d"' e\ f"#, vec!["/bin/x", "a b", "c \"d\"", "e f"]),
            (r#"/bin/x "" "\"" '\'"#, vec!["/bin/x", "", "\"", "\\"]),
            ("/bin/x $HOME; `id` | cat > y", vec!["/bin/x", "$HOME;", "`id`", "|", "cat", ">", "y"]),
        ] {
            assert_eq!(Line::parse(text).unwrap().words, words, "{text}");
        }
        for (text, error) in [
            ("", "it is empty"),
            ("x.sh %p", "\"x.sh\" is no absolute path"),
            ("/x 'a", "a ' is not closed"),
            ("/x \\", "it ends with a \\"),
        ] {
            assert_eq!(Line::parse(text).unwrap_err(), error);
        }
    }

    #[test]
    fn a_value_stays_one_argument() {
        let line = Line::parse("/x --new=%p %f %% 100%").unwrap();
        let value = |name| if name == 'p' { "a b; rm -rf /".to_owned() } else { String::new() };
        assert_eq!(line.fill(value), ["/x", "--new=a b; rm -rf /", "", "%", "100%"]);
        assert_eq!(line.placeholders(), ['p', 'f']);
    }
}
