//! What becomes of a step that panics.
//!
//! Its driver would wait for it for ever, with a container frozen or held and nobody told. What the
//! step has half done is not known, but the journal says what may be undone: so the agent ends, the
//! service manager starts it again, and it goes on from the last record as after any crash.
//! Rejected: reporting it as the failure of the step, because what the step owned is gone with it.

use futures_util::FutureExt;
use std::panic::AssertUnwindSafe;

/// Runs a step to its end; ends the agent when it panics.
pub(super) async fn whole<T>(name: &str, step: impl Future<Output = T>) -> T {
    match AssertUnwindSafe(step).catch_unwind().await {
        Ok(done) => done,
        Err(_) => {
            tracing::error!(step = name, "a step has panicked; the agent ends, to go on from its journal");
            std::process::abort()
        }
    }
}
