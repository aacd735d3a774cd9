//! Calibration plots as SVG, written by hand: what was said against what came true.

use std::fmt::Write;

use super::grade::{BINS, Calibration, Grades};

const SIZE: f64 = 260.0;
const MARGIN: f64 = 44.0;

/// A row of panels: probability at admission, while running, and predicted against real waits.
pub fn svg(title: &str, grades: &Grades) -> String {
    let width = 3.0 * (SIZE + 2.0 * MARGIN);
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{h}" viewBox="0 0 {width} {h}" font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/><text x="{MARGIN}" y="18" font-size="14">{title}</text>"##,
        h = SIZE + 2.0 * MARGIN + 20.0
    );
    reliability(&mut out, 0, "on time, said at admission", &grades.at_admission);
    reliability(&mut out, 1, "on time, said at the first token", &grades.while_running);
    starts(&mut out, 2, grades);
    out.push_str("</svg>\n");
    out
}

fn frame(out: &mut String, panel: usize, title: &str, x: &str, y: &str) -> (f64, f64) {
    let left = panel as f64 * (SIZE + 2.0 * MARGIN) + MARGIN;
    let top = MARGIN;
    let (bottom, right, middle) = (top + SIZE, left + SIZE, left + SIZE / 2.0);
    let _ = write!(
        out,
        r##"<rect x="{left}" y="{top}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#444"/><line x1="{left}" y1="{bottom}" x2="{right}" y2="{top}" stroke="#bbb" stroke-dasharray="4"/><text x="{left}" y="{ty}">{title}</text><text x="{middle}" y="{xy}" text-anchor="middle">{x}</text><text transform="translate({yx} {ym}) rotate(-90)" text-anchor="middle">{y}</text>"##,
        ty = top - 6.0,
        xy = bottom + 30.0,
        yx = left - 28.0,
        ym = top + SIZE / 2.0,
    );
    (left, bottom)
}

fn reliability(out: &mut String, panel: usize, title: &str, calibration: &Calibration) {
    let (left, bottom) = frame(out, panel, title, "said", "came true");
    let most = calibration.count.iter().copied().max().unwrap_or(1).max(1) as f64;
    for bin in 0..BINS {
        let count = calibration.count[bin] as f64;
        let bar = (count / most).sqrt() * SIZE * 0.2;
        let x = left + bin as f64 * SIZE / BINS as f64;
        let _ = write!(
            out,
            r##"<rect x="{x:.1}" y="{:.1}" width="{:.1}" height="{bar:.1}" fill="#dde6f0"/>"##,
            bottom - bar,
            SIZE / BINS as f64 - 1.0
        );
        if count > 0.0 {
            let (said, truth) = (calibration.predicted[bin] / count, calibration.came_true[bin] / count);
            let (x, y) = (left + said * SIZE, bottom - truth * SIZE);
            let _ = write!(out, r##"<circle cx="{x:.1}" cy="{y:.1}" r="4" fill="#1f5fa8"/>"##);
        }
    }
    let note = format!("ECE {:.3}, skill {:.2}, n {}", calibration.error(), calibration.skill(), calibration.total());
    let _ = write!(out, r##"<text x="{left}" y="{}">{note}</text>"##, bottom + 14.0);
}

/// Both axes logarithmic, from a tenth of a second to a hundred seconds.
fn starts(out: &mut String, panel: usize, grades: &Grades) {
    let (left, bottom) = frame(out, panel, "start, waits over 100 ms", "said (0.1 to 100 s, log)", "real");
    let place = |us: f64| ((us / 1e5).log10() / 3.0).clamp(0.0, 1.0) * SIZE;
    let pairs = &grades.starts.pairs;
    for (real, said) in pairs.iter().step_by((pairs.len() / 800).max(1)) {
        let (x, y) = (left + place(*said), bottom - place(*real));
        let _ = write!(out, r##"<circle cx="{x:.1}" cy="{y:.1}" r="1.5" fill="#1f5fa8" fill-opacity="0.5"/>"##);
    }
    let starts = &grades.starts;
    let (error, share) = (starts.error_median(), starts.share_within_quarter());
    let note = format!("median error {:.1} %, {:.1} % within 25 %, n {}", 100.0 * error, 100.0 * share, pairs.len());
    let _ = write!(out, r##"<text x="{left}" y="{}">{note}</text>"##, bottom + 14.0);
}
