//! Pictures of charts: a bar for each point, the newest at the right, as a PNG. Spec 70, 6.3.

/// The ground, then the layers from below.
const PALETTE: [[u8; 3]; 4] = [[0xFF, 0xFF, 0xFF], [0x36, 0x6A, 0x9E], [0xC8, 0x96, 0x2D], [0x4B, 0x8F, 0x4B]];

/// One pixel: there is no such chart.
pub(crate) fn nothing() -> Vec<u8> {
    png(1, 1, &[0])
}

/// A PNG of layers on top of one another, at most three, each newest point first. `size`: width and height in pixels, 16 bits
/// each, brought into bounds; without it 1000 by 120.
pub fn draw(layers: &[Vec<u64>], size: Option<u32>) -> Vec<u8> {
    assert!(layers.len() < PALETTE.len(), "each layer has a colour");
    let area = Area::of(size);
    let sum = |at: usize, layers: &[Vec<u64>]| {
        layers.iter().map(|layer| u128::from(layer.get(at).copied().unwrap_or(0))).sum::<u128>()
    };
    let top = (0..area.width).map(|at| sum(at, layers)).max().unwrap_or(0).max(1);
    let mut pixels = vec![0; area.width * area.height];
    for at in 0..area.width {
        let column = area.width - 1 - at;
        let mut below = 0;
        for (colour, count) in (1..=layers.len()).enumerate() {
            let bar = (sum(at, &layers[..count]) * (area.height as u128 - 1) / top) as usize;
            for row in area.height - bar..area.height - below {
                pixels[row * area.width + column] = colour as u8 + 1;
            }
            below = bar;
        }
    }
    png(area.width, area.height, &pixels)
}

/// Pixels of a picture. Spec 70, 6.3.
struct Area {
    width: usize,
    height: usize,
}

impl Area {
    fn of(size: Option<u32>) -> Area {
        let Some(size) = size else { return Area { width: 1000, height: 120 } };
        let height = (size & 0xFFFF).clamp(120, 1020) as usize;
        Area { width: (size >> 16).clamp(150, 4146) as usize, height: height - (height - 20) % 20 }
    }
}

/// A PNG, not compressed; pixels are places in `PALETTE`.
fn png(width: usize, height: usize, pixels: &[u8]) -> Vec<u8> {
    const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A];
    const DEFLATE_BLOCK_MAX: usize = 65_535;
    let mut head = Vec::new();
    head.extend_from_slice(&(width as u32).to_be_bytes());
    head.extend_from_slice(&(height as u32).to_be_bytes());
    head.extend_from_slice(&[8, 3, 0, 0, 0]); // eight bits, by palette
    let rows: Vec<u8> = pixels.chunks(width).flat_map(|row| std::iter::once(0).chain(row.iter().copied())).collect();
    let mut data = vec![0x78, 0x01];
    let count = rows.len().div_ceil(DEFLATE_BLOCK_MAX);
    for (at, piece) in rows.chunks(DEFLATE_BLOCK_MAX).enumerate() {
        let length = piece.len() as u16;
        let [high, low] = length.to_be_bytes();
        data.extend_from_slice(&[u8::from(at + 1 == count), low, high, !low, !high]);
        data.extend_from_slice(piece);
    }
    data.extend_from_slice(&adler32(&rows).to_be_bytes());
    let mut file = SIGNATURE.to_vec();
    for (kind, body) in
        [(b"IHDR", &head[..]), (b"PLTE", PALETTE.as_flattened()), (b"IDAT", &data[..]), (b"IEND", &[][..])]
    {
        file.extend_from_slice(&(body.len() as u32).to_be_bytes());
        let start = file.len();
        file.extend_from_slice(kind);
        file.extend_from_slice(body);
        let sum = crc32fast::hash(&file[start..]);
        file.extend_from_slice(&sum.to_be_bytes());
    }
    file
}

fn adler32(bytes: &[u8]) -> u32 {
    const MODULUS: u32 = 65_521;
    let (low, high) = bytes.iter().fold((1, 0), |(low, high): (u32, u32), byte| {
        let low = (low + u32::from(*byte)) % MODULUS;
        (low, (high + low) % MODULUS)
    });
    high << 16 | low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_png_of_the_size_that_was_asked_for() {
        let size = |size| {
            let file = draw(&[vec![3, 2, 1]], size);
            assert!(file.starts_with(b"\x89PNG\r\n\x1a\n") && file.ends_with(b"IEND\xAE\x42\x60\x82"));
            [16, 20].map(|at| u32::from_be_bytes(*file[at..].first_chunk().unwrap()))
        };
        assert_eq!(size(None), [1000, 120]);
        assert_eq!(size(Some(300 << 16 | 255)), [300, 240]);
        assert_eq!(size(Some(1)), [150, 120]);
        assert_eq!(adler32(b"Wikipedia"), 0x11E6_0398);
    }

    #[test]
    fn layers_stand_on_one_another() {
        let file = draw(&[vec![1, 0], vec![2, 3]], Some(150 << 16 | 120));
        // Behind the heads, rows of one filter byte and a pixel each; one block holds them all.
        let rows = file.windows(4).position(|word| word == b"IDAT").unwrap() + 4 + 2 + 5;
        let pixel = |row: usize, from_the_right: usize| file[rows + row * 151 + 150 - from_the_right];
        assert_eq!([119, 81, 80, 1, 0].map(|row| pixel(row, 0)), [1, 1, 2, 2, 0], "a third, two thirds, the ground");
        assert_eq!([119, 1].map(|row| pixel(row, 1)), [2, 2], "only the second layer");
        assert_eq!(pixel(119, 2), 0, "nothing is known");
    }
}
