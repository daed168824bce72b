//! Texts of statements: a verdict is always reached, always the same, and remembered as it is.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pgherd_proxy::sql::{Edition, Facts, Route, Show, classify};
use pgherd_proxy::verdicts::VerdictCache;

fuzz_target!(|sql: &[u8]| {
    let facts = Facts::by_names();
    let verdict = classify(sql, &facts);
    let unknown = classify(sql, &Facts::pending());
    assert!(
        unknown.route != Route::Read || verdict.route != Route::Primary,
        "who knows less does not take more for a read"
    );
    let mut cache = VerdictCache::new(4096);
    let edition = Edition { facts: Arc::new(facts), number: 1 };
    for _ in 0..2 {
        assert_eq!(*cache.verdict(&edition, "app", sql), verdict);
    }
    if let Ok(text) = std::str::from_utf8(sql)
        && verdict.show.is_some()
    {
        assert!(Show::parse(text).is_some(), "only what asks the proxy is answered by it");
    }
});
