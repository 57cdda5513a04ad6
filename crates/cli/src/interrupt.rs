//! Ctrl-C as a request to finish: long loops ask [`Interrupted::requested`] between steps, save and return.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// The exit status of a program that Ctrl-C ended: 128 and the signal's number, as shells have it.
pub const EXIT_STATUS: i32 = 128 + SIGINT;

/// Whether the user, or a scheduler, has asked the program to finish. Clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Interrupted(Arc<AtomicBool>);

impl Interrupted {
    /// An answer that stays no: for a loop that nothing interrupts, such as one in a test.
    pub fn never() -> Self {
        Self::default()
    }

    /// Whether to finish now.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Makes the first Ctrl-C (or SIGTERM, which schedulers send before they kill) a request, and the second one the end: the
/// program exits at once with [`EXIT_STATUS`], or that of SIGTERM. Call it once, early.
///
/// # Errors
/// If the system does not let a program handle the signals.
pub fn install() -> io::Result<Interrupted> {
    let interrupted = Interrupted::default();
    for signal in [SIGINT, SIGTERM] {
        // In this order: the first signal passes the conditional exit and sets the flag that arms it.
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&interrupted.0))?;
        flag::register(signal, Arc::clone(&interrupted.0))?;
    }
    Ok(interrupted)
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;

    use signal_hook::low_level::raise;

    use super::*;

    /// Set for the process that the tests below start: how often it sends itself which signal.
    const CHILD: &str = "FEWSTEP_TEST_INTERRUPT";

    /// Runs [`a_process_that_interrupts_itself`] alone in a process and gives its exit status.
    fn status(signal: i32, times: u32) -> Option<i32> {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "interrupt::tests::a_process_that_interrupts_itself", "--ignored"]);
        child.env(CHILD, format!("{signal} {times}")).output().unwrap().status.code()
    }

    #[test]
    #[ignore = "run by the other tests, in a process of its own"]
    fn a_process_that_interrupts_itself() {
        let Ok(order) = std::env::var(CHILD) else { return };
        let (signal, times) = order.split_once(' ').unwrap();
        let interrupted = install().unwrap();
        assert!(!interrupted.requested());
        for _ in 0..times.parse().unwrap() {
            raise(signal.parse().unwrap()).unwrap();
            assert!(interrupted.requested());
        }
    }

    #[test]
    fn the_first_signal_is_a_request() {
        assert_eq!(status(SIGINT, 1), Some(0));
        assert_eq!(status(SIGTERM, 1), Some(0));
    }

    #[test]
    fn the_second_signal_exits_at_once() {
        assert_eq!(status(SIGINT, 2), Some(EXIT_STATUS));
        assert_eq!(status(SIGTERM, 2), Some(128 + SIGTERM));
    }

    #[test]
    fn never_is_never() {
        assert!(!Interrupted::never().requested());
    }
}
