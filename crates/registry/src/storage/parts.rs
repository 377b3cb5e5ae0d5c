//! The bytes of an upload on their way into an object store.
//!
//! They are gathered in the upload's directory until they are a part. Then they are sent while the next
//! ones are received, and lie there until the store has them. So nothing that was acknowledged is in
//! memory alone, and an upload goes on after the death of this process like one whose bytes stay on the
//! disk: the record has what was sent, with the state of the hash over it, and the directory the
//! rest. What fits in one part is sent as a whole when it is complete, in one request.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::digest::common::hazmat::{SerializableState as _, SerializedState};
use sha2::{Digest as _, Sha256};
use tokio_util::task::AbortOnDropHandle;

use super::StorageError;
use super::durable::{self, During as _};
use super::objects::{OBJECT, Record, Sent};
use super::uploads::DATA;
use crate::objects::Objects;

/// So many parts of one upload are sent at a time.
const SENDING: usize = 2;
const BUFFER: usize = 1 << 20;

/// What an upload has, and what is being done with it.
#[derive(Debug)]
pub(super) struct PartedUpload {
    objects: Objects,
    dir: PathBuf,
    tmp: PathBuf,
    /// Not on the disk until something is to be sent.
    record: Record,
    part_size: u64,
    /// How many bytes are gathered for the next part.
    gathered: u64,
    sending: VecDeque<Sending>,
}

/// A part that is on its way, and the hash up to its end.
#[derive(Debug)]
struct Sending {
    task: AbortOnDropHandle<Result<String, StorageError>>,
    file: PathBuf,
    hasher: Sha256,
}

impl PartedUpload {
    /// One that has nothing yet, in a directory that is there.
    pub(super) fn new(objects: Objects, dir: PathBuf, tmp: PathBuf) -> Self {
        let part_size = objects.part_size();
        let (record, sending) = (Record::new(), VecDeque::new());
        Self { objects, dir, tmp, record, part_size, gathered: 0, sending }
    }

    /// What an earlier process left, with the hash over it and how many bytes that are; `None` when it
    /// cannot go on.
    pub(super) fn resume(mut self) -> Result<Option<(Self, Sha256, u64)>, StorageError> {
        if let Some(record) = Record::read(&self.record_file())? {
            self.record = record;
        }
        // It was complete and not a blob yet, which it is not for long; its client begins anew.
        if self.record.size.is_some() {
            return Ok(None);
        }
        let mut hasher = Sha256::new();
        let mut length = 0;
        if let Some(sent) = &self.record.sent {
            self.part_size = sent.part_size;
            length = sent.part_size * sent.parts.len() as u64;
            let Some(state) = read_state(&sent.hash) else { return Ok(None) };
            hasher = state;
        }
        for idx in 0..self.n_sent() {
            durable::remove(&self.part_file(idx))?;
        }
        while self.part_file(self.n_sent()).exists() {
            let file = self.part_file(self.n_sent());
            length += hash_file(&file, &mut hasher)?;
            self.begin_sending(file, hasher.clone())?;
            self.settle()?;
        }
        let data = self.dir.join(DATA);
        if !data.exists() {
            File::create(&data).during("make", &data)?;
        }
        self.gathered = hash_file(&data, &mut hasher)?;
        length += self.gathered;
        if self.gathered > self.part_size {
            // It was begun when blobs were not kept in an object store.
            return Ok(None);
        }
        if self.gathered == self.part_size {
            self.send_gathered(&hasher)?;
        }
        Ok(Some((self, hasher, length)))
    }

    /// Takes and hashes the next bytes. After an error, what there is must be looked up again.
    pub(super) fn append(
        &mut self,
        mut bytes: &[u8],
        hasher: &mut Sha256,
    ) -> Result<(), StorageError> {
        let data = self.dir.join(DATA);
        while !bytes.is_empty() {
            let room = (self.part_size - self.gathered).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(room);
            let file = File::options().write(true).open(&data).during("open", &data)?;
            if let Err(error) = file.write_all_at(now, self.gathered) {
                // What was written of it was not acknowledged.
                file.set_len(self.gathered).during("shorten", &data)?;
                return Err(error).during("write", &data);
            }
            hasher.update(now);
            self.gathered += now.len() as u64;
            if self.gathered == self.part_size {
                self.send_gathered(hasher)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// Waits until the store has every part that is full.
    pub(super) fn settle(&mut self) -> Result<(), StorageError> {
        while !self.sending.is_empty() {
            self.settle_next()?;
        }
        Ok(())
    }

    fn settle_next(&mut self) -> Result<(), StorageError> {
        let Some(Sending { task, file, hasher }) = self.sending.pop_front() else { return Ok(()) };
        let part = match self.objects.wait(task) {
            Ok(part) => part?,
            Err(error) => return Err(io::Error::other(error)).during("send", &file),
        };
        let sent = self.record.sent.as_mut().expect("it was begun before a part was sent");
        sent.parts.push(part);
        sent.hash = STANDARD.encode(hasher.serialize());
        self.record.write(&self.tmp, &self.record_file())?;
        fs::remove_file(&file).during("remove", &file)
    }

    /// Makes what there is, so many bytes, an object, and says so in the record.
    pub(super) fn complete(&mut self, size: u64) -> Result<(), StorageError> {
        self.settle()?;
        let data = self.dir.join(DATA);
        match &self.record.sent {
            None => {
                self.record.write(&self.tmp, &self.record_file())?;
                self.objects.wait(self.objects.put(&self.record.key, &data))?;
            }
            Some(sent) => {
                let whole = (self.record.key.as_str(), sent.upload.as_str());
                let last = (self.gathered > 0).then_some(data.as_path());
                self.objects.wait(self.objects.complete(whole, &sent.parts, last, size))?;
            }
        }
        self.record.size = Some(size);
        self.record.sent = None;
        self.record.write(&self.tmp, &self.record_file())
    }

    /// Sends what was gathered, which is a part.
    fn send_gathered(&mut self, hasher: &Sha256) -> Result<(), StorageError> {
        if self.sending.len() >= SENDING {
            self.settle_next()?;
        }
        let file = self.part_file(self.n_sent() + self.sending.len());
        let data = self.dir.join(DATA);
        fs::rename(&data, &file).during("put aside", &data)?;
        File::create(&data).during("make", &data)?;
        self.gathered = 0;
        self.begin_sending(file, hasher.clone())
    }

    fn begin_sending(&mut self, file: PathBuf, hasher: Sha256) -> Result<(), StorageError> {
        let idx = self.n_sent() + self.sending.len();
        let (key, upload) = self.begin()?;
        let (objects, of) = (self.objects.clone(), file.clone());
        let sent = async move { objects.put_part((&key, &upload), idx, &of).await };
        let task = AbortOnDropHandle::new(self.objects.spawn(sent));
        self.sending.push_back(Sending { task, file, hasher });
        Ok(())
    }

    /// What the store calls it. That is on the disk before the first part is in the store; all that a crash
    /// can leave unknown is a beginning without a byte.
    fn begin(&mut self) -> Result<(String, String), StorageError> {
        let key = self.record.key.clone();
        if let Some(sent) = &self.record.sent {
            return Ok((key, sent.upload.clone()));
        }
        let upload = self.objects.wait(self.objects.begin(&key))?;
        let hash = STANDARD.encode(Sha256::new().serialize());
        let (part_size, parts) = (self.part_size, Vec::new());
        self.record.sent = Some(Sent { upload: upload.clone(), part_size, parts, hash });
        self.record.write(&self.tmp, &self.record_file())?;
        Ok((key, upload))
    }

    fn n_sent(&self) -> usize {
        self.record.sent.as_ref().map_or(0, |sent| sent.parts.len())
    }

    fn part_file(&self, idx: usize) -> PathBuf {
        self.dir.join(format!("part-{idx}"))
    }

    fn record_file(&self) -> PathBuf {
        self.dir.join(OBJECT)
    }
}

fn read_state(text: &str) -> Option<Sha256> {
    let state = STANDARD.decode(text).ok()?;
    let state = SerializedState::<Sha256>::try_from(state.as_slice()).ok()?;
    Sha256::deserialize(&state).ok()
}

/// Hashes a file on, and gives how many bytes it has.
pub(super) fn hash_file(path: &Path, hasher: &mut Sha256) -> Result<u64, StorageError> {
    let mut file = File::open(path).during("open", path)?;
    let mut length = 0;
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).during("read", path)? {
            0 => return Ok(length),
            n => {
                hasher.update(&buffer[..n]);
                length += n as u64;
            }
        }
    }
}
