//! A registry in this process, on a free port, with four tokens.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use longshore_registry::{Registry, RegistryOptions, Scheme, TokenTable, router};
use longshore_types::token::{RegistryAction, RegistryRight, Rights};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

/// May do everything.
pub const ADMIN: &str = "admin-token";
/// May only pull, from everywhere.
pub const READER: &str = "reader-token";
/// May pull from and push to the project `team`.
pub const TEAM: &str = "team-token";
/// Is known and may do nothing.
pub const NOBODY: &str = "nobody-token";

pub struct Server {
    pub address: SocketAddr,
    /// The one that serves and the one that converts, where that is wanted.
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// What changes the tokens of a running registry.
pub type Tokens = watch::Sender<Arc<BTreeMap<String, Rights>>>;

pub fn options(root: &Path) -> RegistryOptions {
    changing_options(root).1
}

/// Options with a table of tokens that can be changed while the registry runs.
pub fn changing_options(root: &Path) -> (Tokens, RegistryOptions) {
    let right = |repositories: &str, actions: &[RegistryAction]| Rights {
        registry: vec![RegistryRight {
            repositories: repositories.to_owned(),
            actions: actions.to_vec(),
        }],
        ..Rights::default()
    };
    let admin = Rights { admin: true, ..Rights::default() };
    let tokens: BTreeMap<_, _> = [
        (ADMIN, admin),
        (READER, right("*", &[RegistryAction::Pull])),
        (TEAM, right("team/*", &[RegistryAction::Pull, RegistryAction::Push])),
        (NOBODY, Rights::default()),
    ]
    .into_iter()
    .map(|(token, rights)| (hex(token.as_bytes()), rights))
    .collect();
    let (sender, receiver) = watch::channel(Arc::new(tokens));
    let defaults = RegistryOptions::new(root, Arc::new(TokenTable::new(receiver)));
    // Only the tests of that convert.
    (sender, RegistryOptions { convert_from: None, ..defaults })
}

pub fn hex(bytes: &[u8]) -> String {
    longshore_types::Digest::from_sha256(Sha256::digest(bytes).into()).hex()
}

pub async fn serve(options: RegistryOptions) -> Server {
    serve_with(options, ()).await
}

/// Serves, and keeps what that needs for as long.
pub async fn serve_with(options: RegistryOptions, needs: impl Send + 'static) -> Server {
    let registry = Arc::new(Registry::open(options).expect("the registry opens"));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("a bound socket");
    let app = router(Arc::clone(&registry), Scheme::Http);
    let converter = tokio::spawn(async move { registry.convert().await });
    let serving = tokio::spawn(async move {
        let _needs = needs;
        axum::serve(listener, app).await.expect("serves for ever");
    });
    Server { address, tasks: [serving, converter] }
}
