//! Telling a client's server that a clip has ended, signed after Standard Webhooks.
//!
//! What was not delivered is tried again with longer and longer pauses, also by the next server. How far that is stands
//! in the folder of the job.

use crate::app::App;
use crate::body::Fields;
use crate::clips::index::Clip;
use crate::fault::Fault;
use crate::fetch::{FetchError, Fetcher};
use crate::openai::types::{Video, VideoStatus};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bundle::atomic;
use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The file in the folder of a job that says how far the delivery is.
const FILE: &str = "http-callback.json";
/// The pauses after attempts that failed, in seconds, as Standard Webhooks advises. After the last one nobody is told.
const PAUSES: [u64; 8] = [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000];
/// Bytes of a secret.
const SECRET: std::ops::RangeInclusive<usize> = 24..=64;

/// Whom to tell when a clip has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Callback {
    /// The address.
    url: String,
    /// The secret of the signature.
    secret: String,
}

impl Callback {
    /// Takes `callback_url` and `callback_secret`.
    ///
    /// # Errors
    /// One of them is missing, or the secret is none.
    pub(crate) fn read(fields: &mut Fields) -> Result<Option<Self>, Fault> {
        let (url, secret) = (fields.text("callback_url")?, fields.text("callback_secret")?);
        match (url, secret) {
            (None, None) => Ok(None),
            (Some(url), Some(secret)) => {
                let callback = Self { url, secret };
                if callback.key().is_none() {
                    let message = "`callback_secret` must be `whsec_` and 24 to 64 bytes in base64";
                    return Err(Fault::parameter("callback_secret", message));
                }
                Ok(Some(callback))
            }
            (Some(_), None) => {
                let message = "`callback_secret` is missing: what is sent is signed with it";
                Err(Fault::parameter("callback_secret", message))
            }
            (None, Some(_)) => Err(Fault::parameter("callback_url", "`callback_url` is missing")),
        }
    }

    /// Checks that the address may be asked.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn check(&self, fetcher: &Fetcher) -> Result<(), Fault> {
        let checked = fetcher.check(&self.url);
        checked.map(drop).map_err(|why| {
            Fault::unsupported("callback_url", format!("`callback_url` cannot be used: {why}"))
        })
    }

    fn key(&self) -> Option<Vec<u8>> {
        let key = STANDARD.decode(self.secret.strip_prefix("whsec_")?).ok()?;
        SECRET.contains(&key.len()).then_some(key)
    }

    /// The headers of a message.
    fn headers(&self, id: &str, now: u64, body: &str) -> Vec<(&'static str, String)> {
        let key = self.key().unwrap_or_default();
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&key) else {
            unreachable!("HMAC takes keys of every length")
        };
        mac.update(format!("{id}.{now}.{body}").as_bytes());
        vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", concat!("rushes/", env!("CARGO_PKG_VERSION")).to_owned()),
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", now.to_string()),
            ("webhook-signature", format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))),
        ]
    }
}

/// What is sent.
#[derive(Debug, Serialize)]
struct Message {
    id: String,
    object: &'static str,
    r#type: &'static str,
    created_at: i64,
    data: Video,
}

/// How far a delivery is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Delivery {
    /// Attempts so far.
    attempts: usize,
    /// When the next one is due, in seconds since 1970; `None` if there is none.
    next: Option<u64>,
}

/// What became of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Delivered,
    /// The receiver wants no more.
    Unwanted,
    Failed,
}

/// Begins to tell the client's server that a clip has ended, if it has asked for it.
pub(crate) fn begin(app: &Arc<App>, clip: &Arc<Clip>) {
    let status = clip.status();
    if clip.ticket.callback.is_some() && status.state.has_ended() && !status.is_deleted {
        tokio::spawn(deliver(Arc::clone(app), Arc::clone(clip)));
    }
}

async fn deliver(app: Arc<App>, clip: Arc<Clip>) {
    let Some(callback) = clip.ticket.callback.clone() else { return };
    let path = app.queue.job_folder(clip.job).join(FILE);
    let mut delivery = read(&path);
    while let Some(due) = delivery.next {
        let wait = Duration::from_secs(due.saturating_sub(app.now()));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = app.ended() => return,
        }
        if clip.status().is_deleted {
            return;
        }
        let (id, body) = message(&clip);
        let (fetcher, callback, now) = (app.fetcher.clone(), callback.clone(), app.now());
        let tried = tokio::task::spawn_blocking(move || attempt(&fetcher, &callback, &id, now, &body)).await;
        let attempt = tried.unwrap_or(Attempt::Failed);
        delivery = after(&delivery, attempt, app.now());
        tracing::info!(clip = clip.ticket.id, ?attempt, attempts = delivery.attempts, "a webhook was sent");
        if let Err(error) = write(&path, &delivery) {
            tracing::warn!("a webhook may be sent twice: {error}");
        }
    }
}

/// The id and the content of the message about a clip. The id is the same in every attempt.
fn message(clip: &Clip) -> (String, String) {
    let video = Video::of(clip);
    let is_complete = video.status == VideoStatus::Completed;
    let id = format!("evt_{}", clip.ticket.id.trim_start_matches("video_"));
    let message = Message {
        id: id.clone(),
        object: "event",
        r#type: if is_complete { "video.completed" } else { "video.failed" },
        created_at: video.completed_at.unwrap_or(video.created_at),
        data: video,
    };
    (id, serde_json::to_string(&message).unwrap_or_default())
}

fn attempt(fetcher: &Fetcher, callback: &Callback, id: &str, now: u64, body: &str) -> Attempt {
    match fetcher.post(&callback.url, &callback.headers(id, now, body), body.as_bytes()) {
        Ok(answer) if (200..300).contains(&answer.status) => Attempt::Delivered,
        Ok(answer) if answer.status == 410 => Attempt::Unwanted,
        Ok(_) | Err(FetchError::Failed(_)) => Attempt::Failed,
        // A name may lead elsewhere by now.
        Err(FetchError::Refused(why)) => {
            tracing::warn!("a webhook is not sent: {why}");
            Attempt::Failed
        }
    }
}

/// How far a delivery is after an attempt.
fn after(delivery: &Delivery, attempt: Attempt, now: u64) -> Delivery {
    let pause = PAUSES.get(delivery.attempts).filter(|_| attempt == Attempt::Failed);
    Delivery { attempts: delivery.attempts + 1, next: pause.map(|pause| now + pause) }
}

/// How far a delivery is. What cannot be read is begun again: a receiver must expect messages twice.
fn read(path: &Path) -> Delivery {
    let first = Delivery { attempts: 0, next: Some(0) };
    std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or(first)
}

fn write(path: &Path, delivery: &Delivery) -> Result<(), bundle::Error> {
    let json = serde_json::to_vec(delivery).map_err(std::io::Error::other);
    atomic::write_atomic(path, &json.map_err(bundle::Error::file("write", path))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read, Write};
    use std::net::TcpListener;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    /// The example of the specification of Standard Webhooks.
    #[test]
    fn a_message_is_signed_as_the_standard_says() {
        let callback = Callback { url: String::new(), secret: SECRET.into() };
        let headers =
            callback.headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#);
        let signature = headers.iter().find(|(name, _)| *name == "webhook-signature").unwrap();
        assert_eq!(signature.1, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn failures_are_tried_again_later_and_later_and_not_for_ever() {
        let mut delivery = Delivery { attempts: 0, next: Some(0) };
        let mut pauses = Vec::new();
        while delivery.next.is_some() {
            delivery = after(&delivery, Attempt::Failed, 1000);
            pauses.extend(delivery.next.map(|next| next - 1000));
        }
        assert_eq!(pauses, PAUSES);
        assert_eq!(delivery.attempts, PAUSES.len() + 1);
        let first = Delivery { attempts: 0, next: Some(0) };
        for ended in [Attempt::Delivered, Attempt::Unwanted] {
            assert_eq!(after(&first, ended, 0), Delivery { attempts: 1, next: None });
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d");
        assert_eq!(read(&path), first);
        write(&path, &delivery).unwrap();
        assert_eq!(read(&path), delivery);
    }

    #[test]
    fn secrets_and_addresses_go_together() {
        let read = |value: serde_json::Value| {
            Callback::read(&mut Fields::new(value.as_object().unwrap().clone(), Vec::new()))
        };
        assert_eq!(read(json!({})).unwrap(), None);
        let given =
            read(json!({"callback_url": "https://a.example", "callback_secret": SECRET})).unwrap().unwrap();
        assert!(given.check(&Fetcher::new(crate::FetchPolicy::Public)).is_ok());
        assert_eq!(
            given.check(&Fetcher::new(crate::FetchPolicy::Off)).unwrap_err().param.as_deref(),
            Some("callback_url")
        );
        for wrong in [
            json!({"callback_url": "https://a.example"}),
            json!({"callback_secret": SECRET}),
            json!({"callback_url": "https://a.example", "callback_secret": "secret"}),
            json!({"callback_url": "https://a.example", "callback_secret": "whsec_c2hvcnQ="}),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_receiver_decides_what_follows() {
        for (status, expected) in [
            ("200 OK", Attempt::Delivered),
            ("204 No Content", Attempt::Delivered),
            ("410 Gone", Attempt::Unwanted),
            ("500 Oh", Attempt::Failed),
            ("302 Found\r\nlocation: http://127.0.0.1:1/", Attempt::Failed),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let callback = Callback {
                url: format!("http://{}/hook", listener.local_addr().unwrap()),
                secret: SECRET.into(),
            };
            let receiver = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let (mut request, mut chunk) = (Vec::new(), [0; 1024]);
                while !request.ends_with(b"{}") {
                    let read = stream.read(&mut chunk).unwrap();
                    request.extend_from_slice(&chunk[..read]);
                }
                stream
                    .write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").as_bytes())
                    .unwrap();
                String::from_utf8(request).unwrap()
            });
            assert_eq!(attempt(&Fetcher::local(), &callback, "evt_1", 7, "{}"), expected, "{status}");
            let request = receiver.join().unwrap();
            assert!(
                request.starts_with("POST /hook HTTP/1.1\r\n") && request.contains("webhook-id: evt_1\r\n"),
                "{request}"
            );
        }
        let nobody = Callback { url: "http://127.0.0.1:1/".into(), secret: SECRET.into() };
        assert_eq!(attempt(&Fetcher::local(), &nobody, "evt_1", 7, "{}"), Attempt::Failed);
    }
}
