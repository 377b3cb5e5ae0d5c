//! A server of the protocol of S3, over a directory of its own, in this process.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use anyhow::Result;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const BUCKET: &str = "images";
const KEY: &str = "platform";
const SECRET: &str = "of the platform";

/// One that is there until it is dropped.
pub struct S3Server {
    address: SocketAddr,
    dir: TempDir,
    runtime: Option<Runtime>,
}

impl S3Server {
    /// Starts it with an empty bucket.
    pub fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("store").join(BUCKET))?;
        let credentials = dir.path().join("credentials");
        let text =
            format!("[default]\naws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n");
        fs::write(&credentials, text)?;
        fs::set_permissions(&credentials, fs::Permissions::from_mode(0o600))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let files = s3s_fs::FileSystem::new(dir.path().join("store"));
        let files = files.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let mut service = S3ServiceBuilder::new(files);
        service.set_auth(SimpleAuth::from_single(KEY, SECRET));
        let service = service.build();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let service = service.clone();
                tokio::spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    // Clients break connections off when they end.
                    let _ = builder.serve_connection(TokioIo::new(socket), service).await;
                });
            }
        });
        Ok(Self { address, dir, runtime: Some(runtime) })
    }

    /// Lines of a config with which a platform keeps its images there.
    pub fn config(&self) -> String {
        let credentials = self.dir.path().join("credentials");
        format!(
            "registry_storage = \"s3://{BUCKET}/platform\"\n\
             registry_s3_endpoint = \"http://{}\"\nregistry_s3_credentials = {credentials:?}\n",
            self.address
        )
    }

    /// The sizes in bytes of the objects with blobs, without what the registry knows the store by.
    pub fn sizes(&self) -> Result<Vec<u64>> {
        let dir = self.dir.path().join("store").join(BUCKET).join("platform");
        let entries = fs::read_dir(dir)?;
        let mut sizes = Vec::new();
        for entry in entries {
            let entry = entry?;
            if !entry.file_name().to_string_lossy().starts_with("registry-") {
                sizes.push(entry.metadata()?.len());
            }
        }
        Ok(sizes)
    }

    /// Answers nobody any more.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Where the credentials are.
    pub fn credentials(&self) -> PathBuf {
        self.dir.path().join("credentials")
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        self.stop();
    }
}
