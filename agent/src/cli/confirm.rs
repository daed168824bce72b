//! Asking before something that cannot be taken back.

use std::io::{self, BufRead, IsTerminal, Write};

use super::error::CliError;

/// Asks on the terminal; anything but a clear yes is a no.
pub(super) fn ask(question: &str) -> Result<(), CliError> {
    if !io::stdin().is_terminal() {
        return Err(CliError::NoTerminal);
    }
    let yes = answer(question, &mut io::stdin().lock(), &mut io::stdout()).map_err(CliError::Answer)?;
    if yes { Ok(()) } else { Err(CliError::Declined) }
}

fn answer(question: &str, input: &mut impl BufRead, output: &mut impl Write) -> io::Result<bool> {
    write!(output, "{question} [y/N] ")?;
    output.flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clear_yes_is_a_yes() {
        for (typed, yes) in
            [("y\n", true), ("YES\n", true), ("\n", false), ("", false), ("no\n", false), ("yep\n", false)]
        {
            let mut output = Vec::new();
            assert_eq!(answer("Sure?", &mut typed.as_bytes(), &mut output).unwrap(), yes, "{typed:?}");
            assert_eq!(output, b"Sure? [y/N] ");
        }
    }
}
