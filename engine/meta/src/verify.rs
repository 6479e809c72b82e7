//! Is an image whole? Told without loading it, in the memory of one frame: the checksums, and the order of sections.
//! Whether the records fit together only `image::Loader` knows.

use crate::image::{FRAME_HEAD_BYTES, ImageError, ImageHeader, Section, whole_frame};

/// Looks at the bytes of an image as they come.
#[derive(Debug, Default)]
pub struct Verifier {
    header: Option<ImageHeader>,
    section: Option<Section>,
    offset: u64,
    rest: Vec<u8>,
}

impl Verifier {
    pub fn new() -> Verifier {
        Verifier::default()
    }

    /// The next bytes of the file. Errors: all but `Digest`.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.rest.extend_from_slice(bytes);
        let mut used = 0;
        if self.header.is_none() && self.rest.len() >= ImageHeader::BYTES {
            self.header = Some(ImageHeader::decode(&self.rest)?);
            used = ImageHeader::BYTES;
        }
        while self.header.is_some()
            && let Some((section, payload)) = whole_frame(&self.rest[used..], self.section, self.offset + used as u64)?
        {
            self.section = Some(section);
            used += FRAME_HEAD_BYTES + payload.len();
        }
        self.rest.drain(..used);
        self.offset += used as u64;
        Ok(())
    }

    /// After all bytes. Errors: `Truncated`, `NotAnImage`.
    pub fn finish(self) -> Result<ImageHeader, ImageError> {
        let header = match self.header {
            Some(header) => header,
            None => return Err(ImageHeader::decode(&self.rest).err().unwrap_or(ImageError::NotAnImage)),
        };
        if self.section != Some(Section::End) || !self.rest.is_empty() {
            return Err(ImageError::Truncated { section: self.section, offset: self.offset });
        }
        Ok(header)
    }
}
