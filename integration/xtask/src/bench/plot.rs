//! A plot as SVG: a row for each series, every run a dot, a bar from the 10th to the 90th percentile, a line at the median.
//!
//! Nothing is filled behind it, and every colour can be told from white and from black.

use anyhow::{Context, Result};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::record::{Plot, Series};

const WIDTH: u32 = 880;
const LEFT: u32 = 250;
const RIGHT: i32 = 90;
const ROW: u32 = 34;
/// Title, axis and its name.
const AROUND: u32 = 100;

const GREY: RGBColor = RGBColor(128, 128, 128);
const OURS: RGBColor = RGBColor(224, 108, 0);
const THEIRS: RGBColor = RGBColor(58, 130, 200);

/// Where the largest value is so many times the smallest, the axis is logarithmic.
const FAR: f64 = 30.0;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// `None` where nothing was measured.
pub(super) fn svg(plot: &Plot) -> Result<Option<String>> {
    let rows: Vec<&Series> = plot.series.iter().filter(|one| !one.values.is_empty()).collect();
    let values = || rows.iter().flat_map(|one| one.values.iter().copied());
    let Some(most) = values().max_by(f64::total_cmp) else { return Ok(None) };
    let least = values().min_by(f64::total_cmp).unwrap_or_default();
    let height = AROUND + ROW * u32::try_from(rows.len())?;
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, (WIDTH, height)).into_drawing_area();
        if least > 0.0 && most > FAR * least {
            draw(&area, (least / 1.2..most * 1.2).log_scale(), plot, &rows)?;
        } else {
            draw(&area, 0.0..(most * 1.05).max(f64::MIN_POSITIVE), plot, &rows)?;
        }
        area.present().context("draw")?;
    }
    Ok(Some(text + "\n"))
}

fn draw<X>(area: &Area<'_>, axis: X, plot: &Plot, rows: &[&Series]) -> Result<()>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let font = |size: u32| ("sans-serif", size).into_font().color(&GREY);
    let mut chart = ChartBuilder::on(area)
        .caption(&plot.title, font(20))
        .margin(10)
        .margin_right(RIGHT)
        .x_label_area_size(45)
        .y_label_area_size(LEFT)
        .build_cartesian_2d(axis, 0.0..rows.len() as f64)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(GREY.mix(0.0))
        .bold_line_style(GREY.mix(0.3))
        .axis_style(GREY)
        .x_labels(8)
        .x_label_formatter(&|value| short(*value))
        .label_style(font(15))
        .x_desc(plot.axis.as_str())
        .axis_desc_style(font(16))
        .draw()?;
    for (n, series) in rows.iter().enumerate() {
        // The first is on top.
        let middle = (rows.len() - n) as f64 - 0.5;
        let colour = colour(&series.name);
        if let (Some(p10), Some(p90)) = (series.p10, series.p90) {
            let bar = [(p10, middle - 0.32), (p90, middle + 0.32)];
            chart.draw_series([Rectangle::new(bar, colour.mix(0.2).filled())])?;
        }
        let dot = |(n, value): (usize, &f64)| {
            Circle::new((*value, middle + scatter(n)), 2, colour.mix(0.8).filled())
        };
        chart.draw_series(series.values.iter().enumerate().map(dot))?;
        if let Some(median) = series.median {
            let line = [(median, middle - 0.4), (median, middle + 0.4)];
            chart.draw_series([PathElement::new(line, colour.stroke_width(3))])?;
        }
        let (_, y) = chart.backend_coord(&(series.values[0], middle));
        area.draw(&Text::new(series.name.clone(), (10, y - 8), font(16)))?;
        let median = series.median.map(short).unwrap_or_default();
        let x = i32::try_from(WIDTH)? - RIGHT + 8;
        area.draw(&Text::new(median, (x, y - 8), font(16)))?;
    }
    Ok(())
}

/// So that dots of one row lie beside each other; the same in every drawing.
fn scatter(n: usize) -> f64 {
    (n * 37 % 101) as f64 / 101.0 * 0.5 - 0.25
}

fn colour(name: &str) -> RGBColor {
    if name.starts_with("hafen") {
        OURS
    } else if ["floor", "no image", "no keeper"].iter().any(|bound| name.starts_with(bound)) {
        GREY
    } else {
        THEIRS
    }
}

/// Three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size > 0.0 && size < 0.1 => format!("{value:.3}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(values: &[&[f64]]) -> Plot {
        let series = values.iter().enumerate().map(|(n, values)| Series {
            name: format!("hafen {n}"),
            values: values.to_vec(),
            p10: values.first().copied(),
            median: values.first().copied(),
            p90: values.last().copied(),
        });
        Plot {
            name: "x".into(),
            title: "A title".into(),
            axis: "ms".into(),
            series: series.collect(),
        }
    }

    #[test]
    fn every_run_is_a_dot() {
        let text = svg(&plot(&[&[1.0, 2.0, 3.0], &[4.0, 5.0], &[]])).unwrap().unwrap();
        assert_eq!(text.matches("<circle").count(), 5, "{text}");
        for word in ["A title", "ms", "hafen 0", "hafen 1", "1.00", "4.00"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        assert!(!text.contains("hafen 2"), "{text}");
    }

    #[test]
    fn outliers_stay_within_the_picture() {
        let text = svg(&plot(&[&[1.0, 5000.0], &[0.001]])).unwrap().unwrap();
        let places = text.split("cx=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let places: Vec<u32> = places.map(|x| x.parse().unwrap()).collect();
        assert_eq!(places.len(), 3);
        assert!(places.iter().all(|x| (LEFT..WIDTH).contains(x)), "{places:?}");
    }

    #[test]
    fn nothing_is_no_picture() {
        assert!(svg(&plot(&[&[]])).unwrap().is_none());
        assert!(svg(&plot(&[&[0.0, 0.0]])).unwrap().is_some(), "zero is a number");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, 0.0123, 1.234, 12.34, 1234.5].map(short).join(" "),
            "0.00 0.012 1.23 12.3 1234"
        );
    }
}
