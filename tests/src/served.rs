//! A server, as its clients see it.

use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Request};

/// How long a clip of the tests may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server in a process of its own, which is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Its address.
    pub address: SocketAddr,
    /// Its data folder.
    pub data: PathBuf,
    agent: ureq::Agent,
}

/// What a server has answered.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Panics
    /// Panics if it is something else.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// A header, if it is there as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The same answer, which must have this status.
    ///
    /// # Panics
    /// Panics if it has another one.
    pub fn with(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        self
    }
}

impl Server {
    /// Starts a server on a free port of this machine. Its log is in the data folder.
    ///
    /// # Panics
    /// Panics if it does not start.
    pub fn start(data: &Path, arguments: &[&str]) -> Self {
        Self::start_as(super::program::rushes(data), data, arguments)
    }

    /// Starts a server by a command that runs the program.
    ///
    /// # Panics
    /// Panics if it does not start.
    pub fn start_as(mut command: std::process::Command, data: &Path, arguments: &[&str]) -> Self {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(data.join("log")).expect("a log");
        let listen = ["serve", "--json", "--listen", "127.0.0.1:0", "--data-dir"];
        command
            .args(listen)
            .arg(data)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().expect("the program starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("standard output")).read_line(&mut line).expect("a line");
        let Ok(started) = serde_json::from_str::<Value>(&line) else {
            let _ = child.kill();
            let log = std::fs::read_to_string(data.join("log")).unwrap_or_default();
            panic!("the server did not start: {line}{log}");
        };
        assert_eq!(started["event"], "serving", "{line}");
        let address =
            started["address"].as_str().and_then(|address| address.parse().ok()).expect("an address");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(PATIENCE))
            .build();
        Self { child, address, data: data.to_owned(), agent: config.into() }
    }

    /// The number of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The address of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Sends a request. `None` if the server did not answer it.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Answer> {
        let url = if path.starts_with("http") { path.to_owned() } else { self.url(path) };
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let agent = &self.agent;
        let sent = if body.is_empty() {
            agent.run(request.body(()).expect("a request"))
        } else {
            agent.run(request.body(body).expect("a request"))
        };
        let mut response = sent.ok()?;
        let mut body = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut body).ok()?;
        Some(Answer { status: response.status().as_u16(), headers: response.headers().clone(), body })
    }

    /// Sends a request.
    ///
    /// # Panics
    /// Panics if there is no answer.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.try_send(method, path, headers, body)
            .unwrap_or_else(|| panic!("no answer to {method} {path}: {}", self.log()))
    }

    /// Gets a path.
    ///
    /// # Panics
    /// Panics if there is no answer.
    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], &[])
    }

    /// Posts JSON.
    ///
    /// # Panics
    /// Panics if there is no answer.
    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    /// Waits until a video has ended. Returns it.
    ///
    /// # Panics
    /// Panics if it does not end.
    pub fn ended(&self, id: &str) -> Value {
        self.until(id, |video| matches!(video["status"].as_str(), Some("completed" | "failed")))
    }

    /// Asks for a video until it is as it should be. Returns it.
    ///
    /// # Panics
    /// Panics if it never is.
    pub fn until(&self, id: &str, is_right: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let video = self.get(&format!("/v1/videos/{id}")).with(200).json();
            if is_right(&video) {
                return video;
            }
            assert!(began.elapsed() < PATIENCE, "{video}: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Sends bytes, and returns what comes until the server closes the connection.
    ///
    /// # Panics
    /// Panics if there is no connection.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        // The server may have closed the connection already.
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("log")).unwrap_or_default()
    }

    /// Asks it to end, and waits until it has. Returns true if it ended by itself and well.
    ///
    /// # Panics
    /// Panics if its state is unknown.
    pub fn stop(&mut self) -> bool {
        super::signals::send(&self.child, "TERM");
        self.child.wait().expect("the end of the server").success()
    }

    /// Kills it.
    ///
    /// # Panics
    /// Panics if its state is unknown.
    pub fn kill(&mut self) {
        // Fails if it has ended.
        let _ = self.child.kill();
        self.child.wait().expect("the end of the server");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes a token of a data folder.
///
/// # Panics
/// Panics if it is refused.
pub fn token(data: &Path, name: &str, more: &[&str]) -> String {
    let mut command = super::program::rushes(data);
    let output = command.args(["--json", "serve", "token", "add", name, "--data-dir"]).arg(data).args(more);
    let output = output.output().expect("the program starts");
    let answer: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("no token: {}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(answer["name"], name);
    answer["token"].as_str().expect("a token").to_owned()
}
