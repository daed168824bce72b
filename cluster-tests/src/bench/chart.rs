//! Bars in an SVG that can be read on a light and on a dark ground.

use std::fmt::Write;

/// Left of the bars.
pub(super) const LEFT: f64 = 90.0;
/// For the bars.
pub(super) const WIDTH: f64 = 560.0;
/// How high a bar is.
pub(super) const BAR: f64 = 13.0;
/// Between groups of bars.
pub(super) const GAP: f64 = 14.0;
/// Above the bars.
pub(super) const TOP: f64 = 62.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:bold}\
.axis{stroke:#59636e;stroke-width:1}.grid{stroke:#59636e;stroke-width:1;stroke-opacity:.25}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.axis{stroke:#9198a1}.grid{stroke:#9198a1}}";

/// The whole picture, which ends below `y`.
pub(super) fn picture(label: &str, y: f64, body: &str) -> String {
    let (width, height) = (LEFT + WIDTH + 90.0, y + 8.0);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"{label}\">\n\
         <style>{STYLE}</style>\n{body}</svg>\n"
    )
}

/// The title, and which colour is whose.
pub(super) fn head(title: &str, names: &[(&str, &str)]) -> String {
    let mut text = format!("<text class=\"title\" x=\"8\" y=\"20\">{title}</text>\n");
    let mut x = LEFT;
    for (name, colour) in names {
        let _infallible = writeln!(
            text,
            "<rect x=\"{x:.0}\" y=\"31\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"41\">{name}</text>",
            x + 16.0
        );
        x += name.len().max(9) as f64 * 7.0 + 27.0;
    }
    text
}

/// A line down to `bottom`, with what it stands for.
pub(super) fn line(class: &str, x: f64, bottom: f64, told: &str) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.0}\" x2=\"{x:.1}\" y2=\"{bottom:.0}\"/>\
         <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" font-size=\"10\">{told}</text>\n",
        TOP - 5.0,
        TOP - 8.0
    )
}

/// The name of a group, beside its first bar.
pub(super) fn group(y: f64, name: &str) -> String {
    format!("<text x=\"8\" y=\"{:.0}\">{name}</text>\n", y + BAR - 2.0)
}

/// A bar from the left to `end`, and the text behind it.
pub(super) fn bar(y: f64, end: f64, colour: &str, told: &str) -> String {
    format!(
        "<rect x=\"{LEFT:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{BAR:.0}\" fill=\"{colour}\"/>\
         <text x=\"{:.1}\" y=\"{:.0}\">{told}</text>\n",
        end - LEFT,
        end + 5.0,
        y + BAR - 2.0
    )
}
