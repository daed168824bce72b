//! Mail.

use std::path::Path;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, MessageBuilder};
use lettre::transport::smtp::AsyncSmtpTransport;
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncTransport, Message, Tokio1Executor};
use pgherd_common::errors::Chain;

use crate::config::{Password, Smtp, SmtpTls};

/// Hands a mail to the server.
pub(super) async fn send(smtp: &Smtp, subject: &str, body: &str) -> Result<(), String> {
    let message = message(smtp, subject, body)?;
    // The system's certificates are many files.
    let settings = smtp.clone();
    let transport = tokio::task::spawn_blocking(move || transport(&settings));
    let transport = transport.await.map_err(|error| error.to_string())??;
    match tokio::time::timeout(smtp.timeout, transport.send(message)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Chain(&error).to_string()),
        Err(_) => Err(format!("no answer within {:?}", smtp.timeout)),
    }
}

fn message(smtp: &Smtp, subject: &str, body: &str) -> Result<Message, String> {
    let mailbox = |address: &String| {
        address.parse::<Mailbox>().map_err(|error| format!("{address:?} is no mail address: {error}"))
    };
    let mut message: MessageBuilder = Message::builder().from(mailbox(&smtp.from)?).subject(subject);
    for to in &smtp.to {
        message = message.to(mailbox(to)?);
    }
    let message = message.header(ContentType::TEXT_PLAIN).body(body.to_owned());
    message.map_err(|error| Chain(&error).to_string())
}

fn transport(smtp: &Smtp) -> Result<AsyncSmtpTransport<Tokio1Executor>, String> {
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&smtp.host)
        .port(smtp.port)
        .timeout(Some(smtp.timeout))
        .tls(match smtp.tls {
            SmtpTls::None => Tls::None,
            SmtpTls::StartTls => Tls::Required(parameters(smtp)?),
            SmtpTls::Tls => Tls::Wrapper(parameters(smtp)?),
        });
    if let (Some(user), Some(password)) = (&smtp.user, &smtp.password) {
        let password = match password {
            Password::Given(secret) => secret.0.clone(),
            Password::File(file) => first_line(file)?,
        };
        builder = builder.credentials(Credentials::new(user.clone(), password));
    }
    Ok(builder.build())
}

fn parameters(smtp: &Smtp) -> Result<TlsParameters, String> {
    let mut builder = TlsParameters::builder(smtp.host.clone());
    if let Some(file) = &smtp.ca_file {
        let cannot = |error: &dyn std::fmt::Display| {
            format!("cannot read certificates from {}: {error}", file.display())
        };
        let pem = std::fs::read(file).map_err(|error| cannot(&error))?;
        let certificate = Certificate::from_pem(&pem).map_err(|error| cannot(&Chain(&error)))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build_rustls().map_err(|error| Chain(&error).to_string())
}

/// A secret that is kept in a file.
pub(super) fn first_line(file: &Path) -> Result<String, String> {
    let text =
        std::fs::read_to_string(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
