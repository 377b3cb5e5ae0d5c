//! The stages of a start: pull, file system, network, create.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use longshore_api::links::StartPath;
use longshore_image::config::ImageConfig;
use longshore_image::mount::IdMap;
use longshore_image::pull::{PullEvent, PullReport};
use longshore_image::store::{HeldImage, Image};
use longshore_link::chain;
use longshore_network::{Attachment, InstanceUsers};
use longshore_runtime::{
    AwaitedClient, ContainerSpec, LogPolicy, ReadOnlyFile, Running, SignalNumber, UserNamespace,
};
use longshore_types::{
    ByteCount, Digest, Duration as Span, GpuShares, InstanceId, InstancePhase, Manifest, Resources,
};
use tokio::time::{Instant, MissedTickBehavior};

use super::coming::{Coming, LOOK};
use super::secrets::ShownSecrets;
use super::{Actor, wish_changed};
use crate::disk::View;
use crate::machine;
use crate::timeline::{PullTimes, Timeline};

/// The most reasons that are told why layers of one pull came as they were pushed.
const MAX_NOTES: usize = 8;
/// How many files of a log are kept, the newest included.
const LOG_FILES: u32 = 4;
/// When the newest file reaches this size the files are rotated.
const LOG_SIZE: ByteCount = ByteCount(Resources::LOG.0 / LOG_FILES as u64);
/// How long a container waits for its client. One that comes at all comes at once: this is for those
/// that died on the way.
const CLIENT_WITHIN: Span = Span::from_secs(60);

impl Actor {
    /// Starts a container; `None` when the wish changed while its image was pulled. The error is
    /// the message for people, with every cause.
    pub(super) async fn start(&mut self) -> Result<Option<Running>, String> {
        self.observed.stages.clear();
        self.timeline = Some(Timeline::begin(self.history.restarts));
        // A start that fails must not count as a run that began when the last one did.
        self.observed.started_at = None;
        self.observed.ready_at = None;
        let Some(held) = self.pull().await? else { return Ok(None) };
        held.note_use();
        let image = held.image.clone();
        self.held = Some(held);
        let node = Arc::clone(&self.node);
        let _turn = tokio::select! {
            turn = node.starts.acquire() => turn.expect("the semaphore is never closed"),
            () = wish_changed(&mut self.wishes) => {
                self.wishes.mark_changed();
                return Ok(None);
            }
        };
        self.show(InstancePhase::Creating, None);

        let began = Instant::now();
        let attachment = self.attach().await?;
        self.show_attachment(&attachment);
        self.stage("network", began.elapsed());

        let began = Instant::now();
        let view = self.make_view(&image, &attachment).await?;
        self.stage("mount", began.elapsed());

        let secrets = self.secrets().await?;
        let began = Instant::now();
        let shown = self.show_secrets(&view, secrets)?;
        let spec = self.spec(&image.config, view, shown, &attachment)?;
        let running = self.node.shims.start(&spec).await.map_err(|error| chain(&error))?;
        for timing in running.timings() {
            tracing::debug!(stage = timing.stage, micros = timing.micros, "created");
        }
        self.stage("create", began.elapsed());
        Ok(Some(running))
    }

    async fn pull(&mut self) -> Result<Option<HeldImage>, String> {
        let release = &self.assignment.release;
        if let Some(held) = self.node.images.hold(&release.image_digest) {
            self.observed.path = Some(StartPath::Cached);
            return Ok(Some(held));
        }
        let (repository, digest) =
            (release.manifest.image.repository.clone(), release.image_digest);
        self.observed.path = Some(StartPath::Pulled);
        self.show(InstancePhase::Pulling, None);
        let times = PullTimes::begin();
        let seen = self.node.stock.pull(&digest);
        let progress = |event: PullEvent| {
            tracing::trace!(?event, "pulling");
            times.note(&event);
            seen.note(&event);
        };
        let node = Arc::clone(&self.node);
        let _first = node.prewarm.start();
        let pull = node.images.pull(node.source.clone(), &repository, &digest, &progress);
        let began = Instant::now();
        let Some(pulled) = self.wait_for(pull, &digest).await else { return Ok(None) };
        machine::release_memory();
        let report = pulled.as_ref().ok().map(|(_, report)| report);
        self.node.metrics.note_pull(report, began.elapsed());
        let (_, report) = pulled.map_err(|error| chain(&error))?;
        let held = node.images.hold(&digest);
        node.stock.change();
        if let Some(timeline) = &mut self.timeline {
            timeline.pulled(&times);
        }
        self.stage("pull", report.fetch);
        self.note_stage(pull_notes(&report));
        self.stage("unpack", report.unpack);
        if report.dropped_devices > 0 {
            let dropped = report.dropped_devices;
            tracing::info!(dropped, %digest, "device nodes of the image were left out");
        }
        let gone = || format!("the image {digest} was removed as soon as it had come");
        held.map(Some).ok_or_else(gone)
    }

    /// Waits for a pull, and tells how far it is; nothing when the wish changed meanwhile.
    async fn wait_for<T>(&mut self, pull: impl Future<Output = T>, image: &Digest) -> Option<T> {
        let mut pull = std::pin::pin!(pull);
        let mut coming = Coming::default();
        let mut look = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                pulled = &mut pull => return Some(pulled),
                // Dropping the pull is safe: what it had is resumed or removed by the store.
                () = wish_changed(&mut self.wishes) => {
                    self.wishes.mark_changed();
                    return None;
                }
                _ = look.tick() => {
                    let state = self.node.stock.coming_of(image);
                    if let Some(note) = state.and_then(|state| coming.note(state)) {
                        self.show(InstancePhase::Pulling, Some(note));
                    }
                }
            }
        }
    }

    async fn attach(&self) -> Result<Attachment, String> {
        let manifest = &self.assignment.release.manifest;
        let (network, instance) = (&self.node.network, &self.assignment.instance);
        let attached = match manifest.user_namespace {
            true => network.attach(instance, &manifest.egress_allow).await,
            false => network.attach_without_users(instance, &manifest.egress_allow).await,
        };
        attached.map_err(|error| chain(&error))
    }

    /// Learns the address and the ids of an adopted container.
    pub(super) async fn find_network(&mut self) -> Result<(), String> {
        let attachment = match self.node.network.attachment(&self.assignment.instance) {
            Some(attachment) => attachment,
            None => self.attach().await?,
        };
        self.show_attachment(&attachment);
        Ok(())
    }

    fn show_attachment(&mut self, attachment: &Attachment) {
        self.observed.address = Some(attachment.address);
        self.observed.ids = attachment.users.as_ref().map(|users| users.ids);
    }

    /// Mounts the image with a fresh writable layer of the size that the manifest allows, and writes
    /// the files that are shown in it.
    async fn make_view(&self, image: &Image, attachment: &Attachment) -> Result<View, String> {
        let instance = self.assignment.instance.clone();
        let users = attachment.users.clone();
        let view = self.node.disk.make_view(&instance, users.as_ref().map(|users| users.ids));
        let view = view.map_err(|error| chain(&error))?;
        let (node, image, rootfs) = (Arc::clone(&self.node), image.clone(), view.rootfs.clone());
        let limit = self.assignment.release.manifest.resources.disk;
        in_background(move || {
            let base = node.layers.make(&node.disk.instance(&instance), limit);
            let base = base.map_err(|error| chain(&error))?;
            let ids = users.as_ref();
            let ids = ids.map(|InstanceUsers { path, ids }| IdMap { users: path, ids: *ids });
            image.mount(&base, &rootfs, ids).map_err(|error| chain(&error))
        })
        .await?;
        self.write_etc(&view, attachment)?;
        Ok(view)
    }

    /// The files by which a container knows its name and resolver.
    fn write_etc(&self, view: &View, attachment: &Attachment) -> Result<(), String> {
        let instance = &self.assignment.instance;
        let files = [
            ("resolv.conf", attachment.resolv_conf()),
            ("hosts", attachment.hosts(instance.as_str())),
            ("hostname", format!("{instance}\n")),
        ];
        files
            .iter()
            .try_for_each(|(name, text)| view.show(name, text))
            .map_err(|error| format!("cannot write the files of {}: {error}", view.etc.display()))
    }

    fn spec(
        &self,
        config: &ImageConfig,
        View { rootfs, etc }: View,
        shown: ShownSecrets,
        attachment: &Attachment,
    ) -> Result<ContainerSpec, String> {
        let manifest = &self.assignment.release.manifest;
        let user = manifest.process.user.as_deref().or(config.user.as_deref()).unwrap_or_default();
        let user = longshore_runtime::resolve_user(&rootfs, user).map_err(|error| chain(&error))?;
        let file = |name: &str| ReadOnlyFile {
            source: etc.join(name),
            destination: format!("/etc/{name}"),
        };
        let stop_signal = manifest.process.stop_signal.as_ref().or(config.stop_signal.as_ref());
        let stop_signal = match stop_signal {
            Some(text) => {
                text.parse().map_err(|error: longshore_runtime::SignalProblem| chain(&error))?
            }
            None => SignalNumber::TERM,
        };
        let instance = &self.assignment.instance;
        let files = ["resolv.conf", "hosts", "hostname"].into_iter().map(file);
        Ok(ContainerSpec {
            id: instance.clone(),
            args: arguments(manifest, config)?,
            env: environment(
                manifest,
                config,
                attachment.address,
                (instance, &self.assignment.gpus),
            ),
            secret_env: shown.env,
            cwd: workdir(manifest, config),
            user,
            hostname: instance.to_string(),
            netns: Some(attachment.netns.clone()),
            users: attachment
                .users
                .clone()
                .map(|InstanceUsers { path, ids }| UserNamespace { path, ids }),
            limits: manifest.resources.clone(),
            files: files.chain(shown.files).collect(),
            stop_signal,
            log: LogPolicy {
                path: super::log_path(&self.node, instance),
                max_size: LOG_SIZE,
                files: LOG_FILES,
            },
            runtime: self.node.programs.find(manifest.runtime)?,
            client: manifest.attached.map(|by| AwaitedClient { by, within: CLIENT_WITHIN }),
            rootfs,
        })
    }

    /// One try to remove the container and its file system.
    pub(super) async fn try_clean_up(&mut self) -> Result<(), String> {
        let instance = &self.assignment.instance;
        self.node.shims.remove(instance).await.map_err(|error| chain(&error))?;
        longshore_image::mount::unmount_rootfs(&self.node.disk.rootfs(instance))
            .map_err(|error| chain(&error))?;
        let (node, dir) = (Arc::clone(&self.node), self.node.disk.instance(instance));
        in_background(move || node.layers.remove(&dir).map_err(|error| chain(&error))).await?;
        if let Some(held) = self.held.take() {
            held.note_use();
        }
        Ok(())
    }

    /// One try to remove everything that the instance used.
    pub(super) async fn try_remove(&mut self) -> Result<(), String> {
        self.try_clean_up().await?;
        let instance = &self.assignment.instance;
        self.node.disk.remove_view(instance).map_err(|error| chain(&error))?;
        self.node.network.detach(instance).await.map_err(|error| chain(&error))?;
        match std::fs::remove_dir_all(self.node.shims.state_dir(instance)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(chain(&error));
            }
            _ => {}
        }
        self.node
            .layers
            .release(&self.node.disk.instance(instance))
            .map_err(|error| chain(&error))?;
        self.node.disk.forget(instance).map_err(|error| chain(&error))
    }
}

/// What there is to say of a pull beside its time.
fn pull_notes(report: &PullReport) -> Vec<String> {
    let PullReport { layers, reused_layers, converted_layers, why_plain, .. } = report;
    let PullReport { bytes_of_neighbours, given_up, .. } = report;
    let mut notes = Vec::new();
    if *converted_layers > 0 {
        let n_pulled = layers - reused_layers;
        notes.push(format!("{converted_layers} of {n_pulled} layers came converted"));
    }
    if bytes_of_neighbours.0 > 0 {
        let fetched = report.bytes_fetched;
        notes.push(format!("{bytes_of_neighbours} from neighbours, {fetched} from the registry"));
    }
    notes.extend(given_up.iter().take(MAX_NOTES).map(|why| format!("neighbour given up: {why}")));
    notes.extend(why_plain.iter().take(MAX_NOTES).map(|why| format!("plain: {why}")));
    notes
}

/// Runs what waits for the disk or the kernel off the async workers.
async fn in_background<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    // A panic in it would be a bug; it is told like a failure.
    tokio::task::spawn_blocking(work).await.map_err(|error| chain(&error))?
}

/// What is run: the manifest's words over the image's, as docker combines them.
fn arguments(manifest: &Manifest, config: &ImageConfig) -> Result<Vec<String>, String> {
    let process = &manifest.process;
    let entrypoint = process.entrypoint.as_ref().unwrap_or(&config.entrypoint);
    let command = match (&process.command, &process.entrypoint) {
        (Some(command), _) => command.as_slice(),
        // An entrypoint of the user's own drops the image's command, which was meant for another.
        (None, Some(_)) => &[],
        (None, None) => &config.cmd,
    };
    let arguments: Vec<_> = entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() {
        let message =
            "the image names no program to run; set process.entrypoint or process.command";
        return Err(message.to_owned());
    }
    Ok(arguments)
}

/// Which GPUs a program may use: the vendor's name for it, which its libraries and container hooks go by.
const VISIBLE_GPUS: &str = "NVIDIA_VISIBLE_DEVICES";

/// The environment: the image's, then the manifest's, then what the platform tells.
fn environment(
    manifest: &Manifest,
    config: &ImageConfig,
    address: Ipv4Addr,
    (instance, gpus): (&InstanceId, &GpuShares),
) -> BTreeMap<String, String> {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let own = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let before = [own("PATH", PATH), own("HOSTNAME", instance.as_str())];
    let told = [
        own("LONGSHORE_PROJECT", manifest.project.as_str()),
        own("LONGSHORE_APP", manifest.app.as_str()),
        own("LONGSHORE_INSTANCE", instance.as_str()),
        own("LONGSHORE_ADDRESS", &address.to_string()),
    ];
    let users = manifest.process.env.iter().map(|(name, value)| own(name, value));
    let image = config.env.iter().cloned();
    let mut all: BTreeMap<_, _> =
        before.into_iter().chain(image).chain(users).chain(told).collect();
    if !gpus.is_empty() {
        all.insert(VISIBLE_GPUS.to_owned(), gpus.to_string());
    } else if let Some(said) = all.get_mut(VISIBLE_GPUS) {
        // Images of the vendor say "all". This is its word for none.
        "void".clone_into(said);
    }
    all
}

fn workdir(manifest: &Manifest, config: &ImageConfig) -> String {
    manifest.process.workdir.as_ref().unwrap_or(&config.working_dir).clone()
}

#[cfg(test)]
mod tests {
    use longshore_types::GpuShare;
    use serde_json::json;

    use super::*;

    fn manifest(process: serde_json::Value) -> Manifest {
        let document =
            json!({"app": "web", "image": "web", "process": process, "env": {"A": "user"}});
        Manifest::from_document(&document).unwrap()
    }

    fn image() -> ImageConfig {
        ImageConfig {
            entrypoint: vec!["/entry".to_owned()],
            cmd: vec!["from-image".to_owned()],
            env: vec![("A".to_owned(), "image".to_owned()), ("PATH".to_owned(), "/x".to_owned())],
            working_dir: "/srv".to_owned(),
            ..ImageConfig::default()
        }
    }

    #[test]
    fn arguments_are_combined_as_docker_does() {
        for (process, expected) in [
            (json!({}), vec!["/entry", "from-image"]),
            (json!({"command": ["mine"]}), vec!["/entry", "mine"]),
            (json!({"entrypoint": ["/other"]}), vec!["/other"]),
            (json!({"entrypoint": ["/other"], "command": ["x"]}), vec!["/other", "x"]),
            (json!({"command": []}), vec!["/entry"]),
        ] {
            assert_eq!(arguments(&manifest(process), &image()).unwrap(), expected);
        }
        let nothing = arguments(&manifest(json!({})), &ImageConfig::default()).unwrap_err();
        assert!(nothing.contains("names no program"), "{nothing}");
    }

    #[test]
    fn the_user_overrides_the_image_and_the_platform_tells_who_it_is() {
        let id = "web-01234567".parse().unwrap();
        let with = |gpus: &[u32]| {
            let share = |index: &u32| GpuShare { index: *index, memory: ByteCount::gib(1) };
            let gpus = gpus.iter().map(share).collect();
            environment(&manifest(json!({})), &image(), Ipv4Addr::LOCALHOST, (&id, &gpus))
        };
        let env = with(&[]);
        assert_eq!((env["A"].as_str(), env["PATH"].as_str()), ("user", "/x"));
        assert_eq!(env["LONGSHORE_INSTANCE"], "web-01234567");
        assert!(!env.contains_key("NVIDIA_VISIBLE_DEVICES"));
        let env = with(&[2, 0]);
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "0,2");
        let mut vendors = image();
        vendors.env.push(("NVIDIA_VISIBLE_DEVICES".to_owned(), "all".to_owned()));
        let none = (&id, &GpuShares::default());
        let env = environment(&manifest(json!({})), &vendors, Ipv4Addr::LOCALHOST, none);
        assert_eq!(env["NVIDIA_VISIBLE_DEVICES"], "void", "what was given none has none");
        assert_eq!(workdir(&manifest(json!({})), &image()), "/srv");
        assert_eq!(workdir(&manifest(json!({"workdir": "/w"})), &image()), "/w");
    }
}
