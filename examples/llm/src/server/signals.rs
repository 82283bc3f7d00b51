//! Signals to stop: SIGINT and SIGTERM.

use tokio::sync::watch;

/// How many signals to stop have come.
#[derive(Clone)]
pub struct Signals(watch::Receiver<usize>);

impl Signals {
    /// Counts from now on, within a runtime.
    pub fn count() -> Self {
        let (sender, receiver) = watch::channel(0);
        tokio::spawn(async move {
            let mut signals = Listener::new();
            while !sender.is_closed() {
                signals.next().await;
                sender.send_modify(|count| *count += 1);
            }
        });
        Self(receiver)
    }

    /// Waits for the signal of this number; the first is 1.
    pub async fn wait(&mut self, number: usize) {
        // The sender stays as long as the runtime.
        let _ = self.0.wait_for(|&count| count >= number).await;
    }
}

struct Listener {
    #[cfg(unix)]
    terminate: Option<tokio::signal::unix::Signal>,
}

impl Listener {
    fn new() -> Self {
        Self {
            #[cfg(unix)]
            terminate: {
                use tokio::signal::unix::{SignalKind, signal};
                // Without it the system's own way is left: the program ends at once.
                signal(SignalKind::terminate()).ok()
            },
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        if let Some(terminate) = &mut self.terminate {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
        // Without signals the program ends otherwise.
        let _ = tokio::signal::ctrl_c().await;
    }
}
