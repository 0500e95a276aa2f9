//! The few shapes that pictures are made of.

use std::fmt::Write;

/// Text and lines.
pub(super) const INK: &str = "#1a1a1a";
/// What is less important.
pub(super) const FAINT: &str = "#6b6b6b";
/// Lines that only divide.
pub(super) const RULE: &str = "#d8d8d8";
/// Average width of a character, in parts of its size.
const CHARACTER: f64 = 0.56;

/// An SVG that grows downwards.
pub(super) struct Drawing {
    width: f64,
    body: String,
}

impl Drawing {
    pub(super) fn new(width: f64) -> Self {
        Self { width, body: String::new() }
    }

    pub(super) fn text(&mut self, x: f64, y: f64, size: f64, text: &str) {
        self.words(x, y, size, text, "start", INK);
    }

    pub(super) fn faint(&mut self, x: f64, y: f64, size: f64, text: &str) {
        self.words(x, y, size, text, "start", FAINT);
    }

    pub(super) fn text_end(&mut self, x: f64, y: f64, size: f64, text: &str) {
        self.words(x, y, size, text, "end", INK);
    }

    pub(super) fn text_middle(&mut self, x: f64, y: f64, size: f64, text: &str, colour: &str) {
        self.words(x, y, size, text, "middle", colour);
    }

    fn words(&mut self, x: f64, y: f64, size: f64, text: &str, anchor: &str, colour: &str) {
        let text = escaped(text);
        let line = format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>\n"
        );
        self.body += &line;
    }

    /// From the bottom up, ending at the point.
    pub(super) fn text_up(&mut self, x: f64, y: f64, size: f64, text: &str) {
        let text = escaped(text);
        let line = format!(
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-60)\" font-size=\"{size}\" fill=\"{INK}\">{text}</text>\n"
        );
        self.body += &line;
    }

    /// A box, with words that show when it is pointed at.
    pub(super) fn rect(&mut self, place: [f64; 4], fill: &str, title: &str) {
        let [x, y, width, height] = place;
        let title =
            if title.is_empty() { String::new() } else { format!("<title>{}</title>", escaped(title)) };
        let line = format!(
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{:.2}\" height=\"{:.2}\" fill=\"{fill}\">{title}</rect>\n",
            width.max(0.0),
            height.max(0.0)
        );
        self.body += &line;
    }

    /// A box's outline.
    pub(super) fn frame(&mut self, [x, y, width, height]: [f64; 4], colour: &str) {
        let line = format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"none\" \
             stroke=\"{colour}\" stroke-width=\"2\"/>\n"
        );
        self.body += &line;
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let line = format!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\" stroke-width=\"{width:.1}\"/>\n"
        );
        self.body += &line;
    }

    /// A bent line from left to right.
    pub(super) fn curve(&mut self, from: (f64, f64), to: (f64, f64), colour: &str, width: f64, title: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let middle = f64::midpoint(x1, x2);
        let line = format!(
            "<path d=\"M{x1:.1} {y1:.1}C{middle:.1} {y1:.1} {middle:.1} {y2:.1} {x2:.1} {y2:.1}\" fill=\"none\" \
             stroke=\"{colour}\" stroke-width=\"{width:.1}\"><title>{}</title></path>\n",
            escaped(title)
        );
        self.body += &line;
    }

    pub(super) fn finish(self, height: f64) -> String {
        let mut svg = String::with_capacity(self.body.len() + 400);
        let width = self.width;
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">"
        )
        .expect("strings take everything");
        svg += "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
        svg += &self.body;
        svg += "</svg>\n";
        svg
    }
}

/// As much of a name as has room.
pub(super) fn fitted(name: &str, size: f64, room: f64) -> String {
    let characters = name.chars().count();
    let fits = (0..=characters).rev().find(|count| *count as f64 * size * CHARACTER <= room).unwrap_or(0);
    if fits >= characters {
        return name.to_owned();
    }
    name.chars().take(fits.saturating_sub(1)).chain(std::iter::once('…')).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Bytes, shortly: `84 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if value < 9.95 && unit != "B" {
                format!("{value:.1} {unit}")
            } else {
                format!("{value:.0} {unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// A time, shortly: `5.9 s`.
pub(super) fn seconds(ms: f64) -> String {
    match ms {
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 100_000.0 => format!("{:.1} s", ms / 1e3),
        ms => format!("{:.0} s", ms / 1e3),
    }
}
