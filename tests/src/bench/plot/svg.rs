//! An SVG file that grows downwards, readable on light and on dark pages.

use std::fmt::Write as _;

/// Classes instead of colours, so that a reader's choice of a dark page is followed.
const STYLE: &str = "
text { font: 12px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600; font-size: 13px }
.faint { fill: #6e7781 }
.grid { stroke: #d0d7de; stroke-width: 1 }
.first { fill: #0969da; fill-opacity: .55 }
.other { fill: #6e7781; fill-opacity: .5 }
.median { stroke: #24292f; stroke-width: 2.5 }
.bar { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 5 4 }
.bartext { fill: #cf222e }
@media (prefers-color-scheme: dark) {
 text { fill: #e6edf3 }
 .faint { fill: #9198a1 }
 .grid { stroke: #3d444d }
 .first { fill: #58a6ff }
 .other { fill: #9198a1 }
 .median { stroke: #e6edf3 }
 .bar { stroke: #ff7b72 }
 .bartext { fill: #ff7b72 }
}
";

/// Where a text is held.
#[derive(Debug, Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// The picture so far.
#[derive(Debug)]
pub(super) struct Picture {
    width: f64,
    height: f64,
    body: String,
}

impl Picture {
    pub(super) fn new(width: f64) -> Self {
        Self { width, height: 0.0, body: String::new() }
    }

    pub(super) fn width(&self) -> f64 {
        self.width
    }

    /// Makes room of this height below what is there; answers where it begins.
    pub(super) fn room(&mut self, height: f64) -> f64 {
        let top = self.height;
        self.height += height;
        top
    }

    pub(super) fn text(&mut self, x: f64, y: f64, anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        // Writing to a String cannot fail.
        let _ = writeln!(
            self.body,
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let _ = writeln!(
            self.body,
            r#"<line class="{class}" x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}"/>"#,
            from.0, from.1, to.0, to.1
        );
    }

    pub(super) fn dot(&mut self, x: f64, y: f64, class: &str) {
        let _ = writeln!(self.body, r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="4"/>"#);
    }

    /// The file.
    pub(super) fn finish(self) -> String {
        let (width, height) = (self.width, self.height);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             width=\"{width:.0}\" height=\"{height:.0}\">\n<style>{STYLE}</style>\n{}</svg>\n",
            self.body
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_cannot_end_an_element() {
        let mut picture = Picture::new(100.0);
        picture.room(20.0);
        picture.text(1.0, 2.0, Anchor::Start, "title", "a < b & c");
        let text = picture.finish();
        assert!(text.contains("a &lt; b &amp; c"), "{text}");
        assert!(text.contains("viewBox=\"0 0 100 20\""), "{text}");
    }
}
