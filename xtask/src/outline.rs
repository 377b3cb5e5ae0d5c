//! `outline`: the land of the Earth for the dashboard's map, as one short SVG path.
//!
//! The source is Natural Earth's 1:110m land, which is in the public domain, as TopoJSON: the file
//! `land-110m.json` of the npm package `world-atlas` 2.0.2. It changes less often than the continents, so
//! what comes out is committed (`dashboard/outline.js`) and this is run by hand.
//!
//! Projected here and not in the browser, because a point then takes some three bytes. The projection is
//! Equal Earth (Šavrič, Patterson, Jenny 2018), which shows areas as they are; `dashboard/map.js` puts
//! locations on the map by the same formula, with the two numbers that are written beside the path.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;

/// Where the land comes from.
#[derive(Args)]
pub struct Options {
    /// Natural Earth's 1:110m land as TopoJSON
    land: PathBuf,
}

/// What is committed.
const OUTPUT: &str = "dashboard/outline.js";
/// How wide the map is, in whole units: points lie on them.
const WIDTH: f64 = 1600.0;
/// Nobody runs machines in most of the rest, and the map is flatter without it.
const LATITUDES: (f64, f64) = (-58.0, 84.0);
/// A point that is nearer than this to the line between its neighbours is left out, in units.
const TOLERANCE: f64 = 0.6;

#[derive(Deserialize)]
struct Topology {
    objects: Objects,
    arcs: Vec<Vec<[f64; 2]>>,
    transform: Transform,
}

#[derive(Deserialize)]
struct Objects {
    land: Land,
}

#[derive(Deserialize)]
struct Land {
    geometries: Vec<MultiPolygon>,
}

#[derive(Deserialize)]
struct MultiPolygon {
    /// By polygon and ring; an arc that is used backwards is the complement of its number.
    arcs: Vec<Vec<Vec<i64>>>,
}

#[derive(Deserialize)]
struct Transform {
    scale: [f64; 2],
    translate: [f64; 2],
}

type Point = (f64, f64);

/// Writes the outline.
pub fn run(options: &Options) -> Result<()> {
    let text = std::fs::read(&options.land)
        .with_context(|| format!("cannot read {}", options.land.display()))?;
    let topology: Topology = serde_json::from_slice(&text).context("not TopoJSON of land")?;
    let module = module(&topology)?;
    std::fs::write(Path::new(OUTPUT), &module).with_context(|| format!("cannot write {OUTPUT}"))?;
    println!("{OUTPUT}: {} bytes", module.len());
    Ok(())
}

fn module(topology: &Topology) -> Result<String> {
    let scale = WIDTH / (2.0 * project((180.0, 0.0)).0);
    let top = project((0.0, LATITUDES.1)).1 * scale;
    let height = (top - project((0.0, LATITUDES.0)).1 * scale).round();
    let mut path = String::new();
    for ring in topology.objects.land.geometries.iter().flat_map(|land| &land.arcs).flatten() {
        let degrees = ring_of(topology, ring)?;
        if degrees.iter().all(|(_, latitude)| *latitude < LATITUDES.0) {
            continue;
        }
        let place = |point: &Point| {
            let (x, y) = project(*point);
            (WIDTH / 2.0 + x * scale, top - y * scale)
        };
        for part in parts_on_map(&degrees) {
            let projected: Vec<Point> = part.iter().map(place).collect();
            write_ring(&mut path, &simplified(&projected));
        }
    }
    Ok(format!(
        "// The land of the Earth: Natural Earth 1:110m, public domain, in the Equal Earth projection.\n\
         // Made by `cargo xtask outline`, which says from what; not to be changed by hand.\n\n\
         export const WIDTH = {WIDTH};\nexport const HEIGHT = {height};\n\
         // Units of the map for one of the projection, and how far the equator is from the top.\n\
         export const SCALE = {scale:.4};\nexport const TOP = {top:.4};\n\
         export const LAND =\n  '{path}';\n"
    ))
}

/// A ring in degrees, longitude first.
fn ring_of(topology: &Topology, ring: &[i64]) -> Result<Vec<Point>> {
    let Transform { scale, translate } = &topology.transform;
    let mut points: Vec<Point> = Vec::new();
    for number in ring {
        let backwards = *number < 0;
        let idx = usize::try_from(if backwards { !number } else { *number })?;
        let (mut x, mut y) = (0.0, 0.0);
        let steps = topology.arcs.get(idx).context("an arc that is not there")?.iter();
        let mut arc: Vec<Point> = steps
            .map(|[dx, dy]| {
                (x, y) = (x + dx, y + dy);
                (x * scale[0] + translate[0], y * scale[1] + translate[1])
            })
            .collect();
        if backwards {
            arc.reverse();
        }
        // An arc begins where the one before it ends.
        points.extend(arc.into_iter().skip(usize::from(!points.is_empty())));
    }
    Ok(points)
}

/// A ring as the map shows it, which ends at 180 degrees: what goes on there is seen at the other side.
fn parts_on_map(ring: &[Point]) -> Vec<Vec<Point>> {
    let mut unrolled: Vec<Point> = Vec::with_capacity(ring.len());
    for (longitude, latitude) in ring {
        let before = unrolled.last().map_or(*longitude, |(before, _)| *before);
        let turns = ((before - longitude) / 360.0).round();
        unrolled.push((longitude + 360.0 * turns, *latitude));
    }
    let shifted = [-360.0, 0.0, 360.0].map(|shift| {
        let ring: Vec<Point> = unrolled.iter().map(|(x, y)| (x + shift, *y)).collect();
        beyond(&beyond(&ring, -180.0, 1.0), 180.0, -1.0)
    });
    shifted.into_iter().filter(|part| !part.is_empty()).collect()
}

/// The part of a ring that is east (`side` 1) or west (-1) of a meridian.
fn beyond(ring: &[Point], meridian: f64, side: f64) -> Vec<Point> {
    let depth = |point: &Point| side * (point.0 - meridian);
    let mut kept = Vec::new();
    for (idx, point) in ring.iter().enumerate() {
        let before = &ring[idx.checked_sub(1).unwrap_or(ring.len() - 1)];
        let (from, to) = (depth(before), depth(point));
        if (from < 0.0) != (to < 0.0) {
            let share = from / (from - to);
            kept.push((meridian, before.1 + share * (point.1 - before.1)));
        }
        if to >= 0.0 {
            kept.push(*point);
        }
    }
    kept
}

/// Equal Earth: degrees, longitude first, to a plane where the equator is some 5.4 long.
fn project((longitude, latitude): Point) -> Point {
    const A: [f64; 4] = [1.340_264, -0.081_106, 0.000_893, 0.003_796];
    let root = 3.0_f64.sqrt();
    let theta = (root / 2.0 * latitude.to_radians().sin()).asin();
    let (t2, t6) = (theta.powi(2), theta.powi(6));
    let slope = A[0] + 3.0 * A[1] * t2 + t6 * (7.0 * A[2] + 9.0 * A[3] * t2);
    let x = 2.0 * longitude.to_radians() * theta.cos() / (root * slope);
    (x, theta * (A[0] + A[1] * t2 + t6 * (A[2] + A[3] * t2)))
}

/// Without the points that do not change how it looks (Douglas and Peucker).
fn simplified(points: &[Point]) -> Vec<Point> {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return Vec::new();
    };
    let far = points.iter().enumerate().skip(1).map(|(idx, point)| {
        let (dx, dy) = (last.0 - first.0, last.1 - first.1);
        let length = dx.hypot(dy);
        let (px, py) = (point.0 - first.0, point.1 - first.1);
        // Of a ring, the first and the last are the same point.
        let distance =
            if length == 0.0 { px.hypot(py) } else { (dx * py - dy * px).abs() / length };
        (idx, distance)
    });
    let farthest = far.max_by(|a, b| a.1.total_cmp(&b.1));
    match farthest.filter(|(_, distance)| *distance > TOLERANCE) {
        Some((idx, _)) => {
            let mut kept = simplified(&points[..=idx]);
            kept.pop();
            kept.extend(simplified(&points[idx..]));
            kept
        }
        None => vec![*first, *last],
    }
}

/// One closed line, each point as the step from the one before it.
fn write_ring(path: &mut String, points: &[Point]) {
    let mut at: Option<Point> = None;
    let mut n_steps = 0;
    let mut ring = String::new();
    for (x, y) in points.iter().map(|(x, y)| (x.round(), y.round())) {
        let (dx, dy) = match at {
            None => {
                write!(ring, "M{x} {y}l").expect("a string takes everything");
                at = Some((x, y));
                continue;
            }
            Some((before_x, before_y)) => (x - before_x, y - before_y),
        };
        if (dx, dy) == (0.0, 0.0) {
            continue;
        }
        at = Some((x, y));
        n_steps += 1;
        for step in [dx, dy] {
            // A minus sign parts two numbers as well as a space does.
            if step >= 0.0 && !ring.ends_with('l') {
                ring.push(' ');
            }
            write!(ring, "{step}").expect("a string takes everything");
        }
    }
    // An island that is nothing but a line at this size is left out.
    if n_steps > 2 {
        path.push_str(&ring);
        path.push('z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_is_put_together_projected_and_written_in_steps() {
        let topology = serde_json::json!({
            "objects": {"land": {"geometries": [{"arcs": [[[0, -2]]]}]}},
            "arcs": [[[0, 0], [90, 0], [0, 30]], [[0, 0], [0, 30], [90, 0]]],
            "transform": {"scale": [1.0, 1.0], "translate": [0.0, 0.0]},
        });
        let topology: Topology = serde_json::from_value(topology).unwrap();
        let ring = ring_of(&topology, &[0, -2]).unwrap();
        let corners = [(0.0, 0.0), (90.0, 0.0), (90.0, 30.0), (0.0, 30.0), (0.0, 0.0)];
        assert_eq!(ring, corners);
        let module = module(&topology).unwrap();
        assert!(module.contains("'M800 386l400 0"), "{module}");
        assert!(module.contains("z'"), "{module}");
    }

    #[test]
    fn what_goes_on_beyond_the_edge_is_seen_at_the_other_side() {
        let ring = [(170.0, 0.0), (-170.0, 0.0), (-170.0, 10.0), (170.0, 10.0), (170.0, 0.0)];
        let parts = parts_on_map(&ring);
        assert_eq!(parts.len(), 2);
        for (part, edge) in parts.iter().zip([-180.0, 180.0]) {
            let width = part.iter().map(|(x, _)| (x - edge).abs()).fold(0.0, f64::max);
            assert_eq!(width, 10.0, "{part:?}");
        }
        assert_eq!(parts_on_map(&[(0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 0.0)]).len(), 1);
    }

    #[test]
    fn the_projection_keeps_areas() {
        // A strip of one degree of latitude has the area of a sphere's, up to a common factor.
        let area = |latitude: f64| {
            let width = project((180.0, latitude)).0;
            width * (project((0.0, latitude + 0.5)).1 - project((0.0, latitude - 0.5)).1)
        };
        let factor = area(0.0);
        for latitude in [15.0, 45.0, 70.0_f64] {
            let relative = area(latitude) / factor / latitude.to_radians().cos();
            assert!((relative - 1.0).abs() < 0.001, "{latitude}: {relative}");
        }
    }

    #[test]
    fn points_on_a_line_are_left_out() {
        let line = [(0.0, 0.0), (5.0, 0.1), (10.0, 0.0), (10.0, 9.0)];
        assert_eq!(simplified(&line), [(0.0, 0.0), (10.0, 0.0), (10.0, 9.0)]);
    }
}
