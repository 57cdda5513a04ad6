use fast_image_resize::images::{Image as View, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::Image;
use crate::error::{MediaError, Result};

/// The largest middle part of an image with the aspect of `width` × `height`, resized to it: a bicubic filter
/// (Catmull–Rom) that widens when it shrinks, so that nothing aliases. An image of these sides comes back as it is.
///
/// # Errors
/// [`MediaError::Shape`] for a side of zero or beyond [`limits::SIDE`](crate::limits::SIDE).
pub fn fit(image: &Image, width: usize, height: usize) -> Result<Image> {
    if [width, height].iter().any(|side| !(1..=crate::limits::SIDE).contains(side)) {
        let (expected, got) = (format!("1 to {} pixels", crate::limits::SIDE), format!("{width} × {height}"));
        return Err(MediaError::Shape { what: "sides", expected, got });
    }
    if [image.width(), image.height()] == [width, height] {
        return Ok(image.clone());
    }
    let refused = |e: &dyn std::fmt::Display| MediaError::Shape {
        what: "image to resize",
        expected: "sides that the resizer takes".into(),
        got: e.to_string(),
    };
    let source = ImageRef::new(image.width() as u32, image.height() as u32, image.rgb(), PixelType::U8x3);
    let source = source.map_err(|e| refused(&e))?;
    let mut target = View::new(width as u32, height as u32, PixelType::U8x3);
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom))
        .fit_into_destination(Some((0.5, 0.5)));
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| refused(&e))?;
    Ok(Image::of_rgb(width, height, target.into_vec()))
}
