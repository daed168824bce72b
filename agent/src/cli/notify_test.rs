//! `pgherd notify-test`.

use crate::api::types::Tried;

/// A line for each channel.
pub(super) fn render(tried: &[Tried]) -> String {
    if tried.is_empty() {
        return "Notifications of this agent go to its log only: neither [notifications.smtp], [notifications.webhook] nor \
                scripts.notification is configured.\n"
            .to_owned();
    }
    let line = |Tried { channel, error }: &Tried| match error {
        None => format!("{channel}: sent\n"),
        Some(error) => format!("{channel}: failed: {error}\n"),
    };
    tried.iter().map(line).collect()
}

/// Whether there is a channel, and each delivers.
pub(super) fn is_told(tried: &[Tried]) -> bool {
    !tried.is_empty() && tried.iter().all(|tried| tried.error.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_channel_is_told_with_what_became_of_it() {
        let sent = Tried { channel: "mail through mx:25".to_owned(), error: None };
        let failed = Tried { channel: "script /x".to_owned(), error: Some("no answer".to_owned()) };
        let text = "mail through mx:25: sent\nscript /x: failed: no answer\n";
        assert_eq!(render(&[sent.clone(), failed.clone()]), text);
        assert!(is_told(std::slice::from_ref(&sent)) && !is_told(&[sent, failed]) && !is_told(&[]));
        assert!(render(&[]).contains("log only"));
    }
}
