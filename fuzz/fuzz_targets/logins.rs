//! First packets, proofs of passwords, and what servers say while one logs in.

#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use pgherd_proxy::wire::backend::{self, Authentication, ServerError};
use pgherd_proxy::wire::frontend;
use pgherd_proxy::wire::password::{Md5Hash, Stored};
use pgherd_proxy::wire::scram::{Binding, ClientExchange, ServerExchange, Verifier};
use pgherd_proxy::wire::startup::{self, STARTUP_MAX, Startup};

const VERIFIER: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

fuzz_target!(|data: &[u8]| {
    let [what, data @ ..] = data else { return };
    match what % 4 {
        0 => first_packet(data),
        1 => as_server(data),
        2 => as_client(data),
        _ => other(data),
    }
});

fn first_packet(data: &[u8]) {
    let Ok(Some((startup, len))) = startup::parse(data) else { return };
    assert!(len <= data.len() && len <= STARTUP_MAX);
    if let Startup::Start(mut start) = startup {
        let mut again = BytesMut::new();
        startup::put_start(&mut again, start.parameters.iter().map(|(a, b)| (a.as_str(), b.as_str())));
        start.minor = 0;
        assert_eq!(startup::parse(&again), Ok(Some((Startup::Start(start), again.len()))));
    }
}

fn as_server(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let (stored, first, last) = (parts.next(), parts.next(), parts.next());
    let stored = String::from_utf8_lossy(stored.unwrap_or_default());
    let verifier = Verifier::parse(&stored).or_else(|| Verifier::parse(VERIFIER)).expect("one is good");
    for (end_point, plus) in [(None, false), (Some(b"hash".as_slice()), true), (Some(b"hash".as_slice()), false)] {
        let begun =
            ServerExchange::begin(verifier.clone(), first.unwrap_or_default(), "nonce", (end_point, plus));
        if let Ok((exchange, answer)) = begun {
            assert!(answer.starts_with("r="));
            assert!(exchange.finish(last.unwrap_or_default()).is_err(), "nobody guesses a proof");
        }
    }
}

fn as_client(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (_, first) = ClientExchange::begin("nonce", Binding::NotOffered);
    assert_eq!(first, "y,,n=,r=nonce");
    let _proves_nothing = Md5Hash::parse(&text).map(|hash| {
        assert!(hash.is_proven_by([1, 2, 3, 4], hash.answer([1, 2, 3, 4]).as_bytes()));
    });
    let _whatever = Stored::parse(&text);
}

fn other(data: &[u8]) {
    let _whatever = Authentication::read(data);
    let _whatever = backend::parameter(data);
    let _whatever = backend::key(data);
    let _whatever = frontend::sasl_initial(data);
    let _whatever = frontend::bind(data);
    let _whatever = frontend::subject(data);
    let _whatever = frontend::Parse::read(data);
    if let Ok(error) = ServerError::read(data) {
        let mut again = BytesMut::new();
        error.put(&mut again);
        assert_eq!(ServerError::read(&again[5..]), Ok(error));
    }
}
