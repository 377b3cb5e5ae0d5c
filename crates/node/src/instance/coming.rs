//! How far the image of an instance is, told while that waits for it.
//!
//! What an instance notes goes to its location, to the global plane and to everybody who watches. So it is told by
//! twentieths of the image, and once a second at most. Who wants to know it to the byte asks the node for its images.

use std::time::Duration;

use longshore_types::ImageState;

/// How often it is looked how far an image is.
pub const LOOK: Duration = Duration::from_secs(1);
/// In how many parts it is told.
const PARTS: u128 = 20;

/// What was told of an image.
#[derive(Debug, Default)]
pub struct Coming {
    part: Option<u128>,
}

impl Coming {
    /// What there is to tell now, if that is not what was told last.
    pub fn note(&mut self, state: ImageState) -> Option<String> {
        let ImageState::Pulling { done, of } = state else { return None };
        // There is no whole to tell of before its manifest is here.
        let part = (u128::from(done.0) * PARTS).checked_div(u128::from(of.0))?;
        (self.part.replace(part) != Some(part))
            .then(|| format!("{done} of {of} of its image are here"))
    }
}

#[cfg(test)]
mod tests {
    use longshore_types::ByteCount;

    use super::*;

    #[test]
    fn an_image_is_told_by_twentieths() {
        let mut coming = Coming::default();
        let mut note = |done: u64, of: u64| {
            coming.note(ImageState::Pulling { done: ByteCount::mib(done), of: ByteCount::mib(of) })
        };
        assert_eq!(note(0, 0), None, "how much it is is not known yet");
        assert_eq!(note(0, 200).as_deref(), Some("0 B of 200 MiB of its image are here"));
        assert_eq!(note(9, 200), None);
        assert_eq!(note(10, 200).as_deref(), Some("10 MiB of 200 MiB of its image are here"));
        assert_eq!(note(19, 200), None);
        assert_eq!(note(200, 200).as_deref(), Some("200 MiB of 200 MiB of its image are here"));
        // A layer begins anew when its converted form is damaged.
        assert_eq!(note(100, 200).as_deref(), Some("100 MiB of 200 MiB of its image are here"));
        let told = (0..=2000).filter_map(|done| note(done, 2000)).count();
        assert_eq!(told, 21, "however small its steps");
        assert_eq!(Coming::default().note(ImageState::Complete), None);
    }
}
