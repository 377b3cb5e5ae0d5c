//! The steps by which images come onto the disk, go, and are found there again: the places where tests
//! have the process die, one after the other, and cut the power.
//!
//! What changes a store has a step on either side. In the product a step is nothing. A step that
//! nobody takes the compiler finds, one at which nothing died the tests do (`pull::tests::crash`).

#[cfg(test)]
pub(crate) mod tests;

macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident,)+) => {
        /// Something was just done.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Step { $($(#[doc = $doc])+ $step,)+ }

        #[cfg(test)]
        impl Step {
            pub const ALL: &[Self] = &[$(Self::$step),+];
        }
    };
}

steps! {
    /// The directories of a store were made.
    StoreMade,
    /// What an earlier process left unfinished was removed.
    LeftoversRemoved,
    /// An image was mounted to see whether the kernel can.
    ProbeMounted,
    /// The records of images were read, and unusable ones removed.
    RecordsRead,
    /// A directory was made for what has no name yet.
    Staged,
    /// A small file was written there.
    StagedFileWritten,
    /// It was synced.
    StagedFileSynced,
    /// All that is in such a directory was synced.
    StagedSynced,
    /// It was given its name.
    Named,
    /// That was synced.
    NameSynced,
    /// A file in such a directory was given its name.
    FileNamed,
    /// That was synced.
    FileNameSynced,
    /// Such a directory was removed.
    StagedRemoved,
    /// A file, link or whiteout was made in a directory of a layer.
    NodeMade,
    /// A directory of a layer was finished.
    TreeFinished,
    /// A buffer was written of a layer's contents, or of its blob to be kept.
    BufferWritten,
    /// A layer's contents were written.
    ContentsWritten,
    /// They were synced.
    ContentsSynced,
    /// What an earlier pull kept of a blob was opened.
    BeginningOpened,
    /// It was removed.
    BeginningRemoved,
    /// The file was opened that the frames of a layer come to.
    FramesOpened,
    /// It was given the room that they will take.
    FramesRoomTaken,
    /// A frame was written.
    FrameWritten,
    /// All frames were synced.
    FramesSynced,
    /// They were given a second name where the layer is made.
    FramesLinked,
    /// Their first one was removed.
    FramesUnlinked,
    /// The attributes of directories were written that no layer of an image can hold.
    AttributesWritten,
    /// The metadata file of an image was written.
    MetadataWritten,
    /// It was synced.
    MetadataSynced,
    /// The record of an image was removed.
    RecordRemoved,
    /// That was synced.
    RecordsSynced,
    /// Something was moved to the trash.
    Trashed,
    /// It was removed.
    TrashRemoved,
}

/// Says that something was just done.
#[cfg(not(test))]
pub(crate) fn reached(_: Step) {}

#[cfg(test)]
pub(crate) use tests::reached;
