//! A headless Chromium, driven through Debian's chromedriver.
//!
//! The driver speaks WebDriver: JSON over HTTP on loopback, one request at a time. That is little enough
//! for the client of [`crate::http`]. Rejected: fantoccini, whose crate for the protocol has a licence that is
//! not on our list, and which would make every test that looks at a page async.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::Request;
use crate::process::Process;
use crate::wait::{eventually, patience};

/// How a browser looks at pages.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    /// Width and height of the page, in pixels.
    pub size: (u32, u32),
    /// Whether the user prefers dark colours.
    pub dark: bool,
    /// Whether it is a phone.
    pub phone: bool,
}

impl Looks {
    /// The usual window.
    pub const DESKTOP: Self = Self { size: (1280, 800), dark: false, phone: false };
    /// The narrowest phone that is still in use.
    pub const PHONE: Self = Self { size: (360, 740), dark: false, phone: true };
}

/// A key without a character, as WebDriver writes it.
pub mod key {
    /// Enter.
    pub const ENTER: &str = "\u{e007}";
    /// Escape.
    pub const ESCAPE: &str = "\u{e00c}";
    /// Tab.
    pub const TAB: &str = "\u{e004}";
}

/// A browser with one page and a profile of its own, gone with this value.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    profile: TempDir,
}

impl Browser {
    /// Starts one.
    pub fn start(looks: Looks) -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("lsc-").tempdir()?;
        let mut command = Command::new("chromedriver");
        command
            .args(["--port=0", "--allowed-ips="])
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut driver = start_blind_to_interfaces(&mut command)
            .context("cannot run chromedriver; install the package chromium-driver")?;
        let port = port_of(&mut driver)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut browser = Self { driver, address, session: String::new(), profile };
        browser.session = browser.new_session(looks)?;
        let (width, height) = looks.size;
        let screen = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": looks.phone,
        });
        browser.devtools("Emulation.setDeviceMetricsOverride", screen)?;
        let scheme = if looks.dark { "dark" } else { "light" };
        let media = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        browser.devtools("Emulation.setEmulatedMedia", media)?;
        Ok(browser)
    }

    fn new_session(&self, looks: Looks) -> Result<String> {
        let (width, height) = looks.size;
        let arguments = [
            "--headless=new".to_owned(),
            // Tests run as root, for whom it has no sandbox; the pages are our own.
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--user-data-dir={}", self.profile.path().join("profile").display()),
            format!("--window-size={width},{height}"),
        ];
        let wanted = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let capabilities = json!({"capabilities": {"alwaysMatch": wanted}});
        let answer = self.call("POST", "/session", &capabilities)?;
        let id = answer["sessionId"].as_str().context("the driver names no session")?;
        Ok(id.to_owned())
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let request = Request {
            method,
            body: (method == "POST").then_some(body.as_bytes()),
            timeout: patience(),
            ..Request::get("localhost", path)
        };
        let text = request.send(self.address)?.text();
        let mut answer: Value = serde_json::from_str(&text).context("not an answer of a driver")?;
        let value = answer["value"].take();
        if let Some(error) = value.get("error").and_then(Value::as_str) {
            let message = value["message"].as_str().unwrap_or_default();
            bail!("{method} {path}: {error}: {}", message.lines().next().unwrap_or_default());
        }
        Ok(value)
    }

    fn in_session(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Calls a method of the devtools protocol.
    pub fn devtools(&self, method: &str, parameters: Value) -> Result<Value> {
        self.in_session("POST", "/goog/cdp/execute", &json!({"cmd": method, "params": parameters}))
    }

    /// Goes to an address and waits until the page is loaded.
    pub fn open(&self, url: &str) -> Result<()> {
        self.in_session("POST", "/url", &json!({"url": url})).map(drop)
    }

    /// Runs the body of a function in the page; a promise is waited for.
    pub fn run(&self, script: &str) -> Result<Value> {
        self.in_session("POST", "/execute/sync", &json!({"script": script, "args": []}))
    }

    /// Looks until the expression is true in the page.
    pub fn wait_for(&self, what: &str, expression: &str) -> Result<()> {
        let script = format!("return Boolean({expression})");
        let seen = eventually(what, || Ok(self.run(&script)?.as_bool().filter(|truth| *truth)));
        seen.map(drop).with_context(|| {
            let text = self.text().unwrap_or_default();
            let console = self.console().unwrap_or_default();
            format!("{text}\nconsole: {console:?}\nloaded: {}", self.loaded())
        })
    }

    /// What the page loaded: whether it is whole, and status and milliseconds of each of its files.
    fn loaded(&self) -> Value {
        let script = "return [document.readyState, performance.getEntriesByType('resource')\
                      .map((one) => [one.name, one.responseStatus, Math.round(one.duration)])]";
        self.run(script).unwrap_or_default()
    }

    /// The text that the page shows.
    pub fn text(&self) -> Result<String> {
        let text = self.run("return document.body.innerText")?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Presses keys one after the other, each a character or one of [`key`], wherever the focus is.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        let strokes: Vec<Value> = keys
            .iter()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({"type": kind, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": strokes});
        self.in_session("POST", "/actions", &json!({"actions": [keyboard]})).map(drop)
    }

    /// Types a text wherever the focus is.
    pub fn type_text(&self, text: &str) -> Result<()> {
        let characters: Vec<String> = text.chars().map(String::from).collect();
        self.press(&characters.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What the page wrote to the console since the last call, what the browser refused it included.
    pub fn console(&self) -> Result<Vec<String>> {
        let entries = self.in_session("POST", "/se/log", &json!({"type": "browser"}))?;
        let message = |entry: &Value| entry["message"].as_str().unwrap_or_default().to_owned();
        Ok(entries.as_array().into_iter().flatten().map(message).collect())
    }

    /// A picture of what is seen, as PNG.
    pub fn screenshot(&self) -> Result<Vec<u8>> {
        let encoded = self.in_session("GET", "/screenshot", &Value::Null)?;
        let encoded = encoded.as_str().context("no picture")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(encoded)?)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Errors are not raised from here; what is not ended by this is killed below.
        let path = format!("/session/{}", self.session);
        let request = Request {
            method: "DELETE",
            timeout: Duration::from_secs(10),
            ..Request::get("localhost", &path)
        };
        let _ = request.send(self.address);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
        let profile = self.profile.path().display().to_string();
        for process in Process::all().unwrap_or_default() {
            if process.mentions(&profile) {
                let _ = process.kill();
            }
        }
    }
}

/// Starts a program that does not see the machine's interfaces come and go, nor does what it starts.
///
/// A browser gives up all that it is loading when they do, and here they do all the time: each instance of
/// each test that runs meanwhile has one. It is told by a netlink socket, and does without where it gets none.
fn start_blind_to_interfaces(command: &mut Command) -> Result<Child> {
    let is_netlink = SeccompCondition::new(
        0,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Eq,
        u64::from(AddressFamily::NETLINK.as_raw()),
    )?;
    let rules = [(libc::SYS_socket, vec![SeccompRule::new(vec![is_netlink])?])];
    let refusal = SeccompAction::Errno(Errno::AFNOSUPPORT.raw_os_error().unsigned_abs());
    let arch = std::env::consts::ARCH.try_into()?;
    let filter =
        SeccompFilter::new(rules.into_iter().collect(), SeccompAction::Allow, refusal, arch)?;
    let program: BpfProgram = filter.try_into()?;
    // What a thread may not do, the programs that it starts may not either; the thread ends here.
    let started = std::thread::scope(|scope| {
        let start = || {
            seccompiler::apply_filter(&program)?;
            Ok(command.spawn()?)
        };
        scope.spawn(start).join()
    });
    started.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The port that a driver says it took.
fn port_of(driver: &mut Child) -> Result<u16> {
    let output = driver.stdout.take().context("the driver has no output")?;
    let mut lines = BufReader::new(output).lines();
    let port = lines.by_ref().find_map(|line| {
        let line = line.ok()?;
        let (_, port) = line.strip_suffix('.')?.rsplit_once("started successfully on port ")?;
        port.parse().ok()
    });
    // Read on, so that it never waits for somebody to do so.
    std::thread::spawn(move || lines.for_each(drop));
    port.context("chromedriver does not say on which port it listens")
}
