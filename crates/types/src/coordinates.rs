//! Where on Earth something is.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ParseError;

/// How many parts a degree has here: some eleven metres each, which tells buildings apart.
const PARTS: f64 = 10_000.0;

/// A place on Earth by latitude and longitude in degrees (WGS 84), north and east positive.
///
/// Kept in ten thousandths of a degree: what is written is what is read back, and two values can be
/// compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Degrees", into = "Degrees")]
pub struct Coordinates {
    latitude: i32,
    longitude: i32,
}

/// The same, as it is written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Degrees {
    /// From -90 (south) to 90.
    latitude: f64,
    /// From -180 (west) to 180.
    longitude: f64,
}

impl Coordinates {
    /// What a text of them looks like.
    pub const ALLOWED: &str =
        "latitude and longitude in degrees, such as \"52.37, 4.90\"; south and west are negative";

    /// The place at these degrees. None beyond the poles, beyond 180 degrees, and for what is no number.
    pub fn new(latitude: f64, longitude: f64) -> Option<Self> {
        let within = |degrees: f64, limit: f64| (-limit..=limit).contains(&degrees);
        (within(latitude, 90.0) && within(longitude, 180.0))
            .then(|| Self { latitude: parts(latitude), longitude: parts(longitude) })
    }

    /// In degrees, from -90 (the south pole) to 90.
    pub fn latitude(self) -> f64 {
        f64::from(self.latitude) / PARTS
    }

    /// In degrees, from -180 (west) to 180.
    pub fn longitude(self) -> f64 {
        f64::from(self.longitude) / PARTS
    }

    /// How far away another place is along the surface, in kilometres, to half a percent.
    pub fn kilometres_to(self, other: Self) -> f64 {
        const EARTH_RADIUS_KM: f64 = 6371.0;
        let (from, to) = (self.latitude().to_radians(), other.latitude().to_radians());
        let half = |from: f64, to: f64| ((to - from) / 2.0).sin().powi(2);
        let longitudes = half(self.longitude().to_radians(), other.longitude().to_radians());
        // The haversine formula; rounding must not lead outside of what an arc sine is defined for.
        let chord = half(from, to) + from.cos() * to.cos() * longitudes;
        2.0 * EARTH_RADIUS_KM * chord.clamp(0.0, 1.0).sqrt().asin()
    }

    /// The same in whole kilometres, so that the last digit of a machine's sine makes no difference.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 20,015")]
    pub fn km_to(self, other: Self) -> u32 {
        self.kilometres_to(other).round() as u32
    }
}

/// Degrees of at most 180 in parts of a degree.
#[expect(clippy::cast_possible_truncation, reason = "at most 1,800,000")]
fn parts(degrees: f64) -> i32 {
    (degrees * PARTS).round() as i32
}

impl FromStr for Coordinates {
    type Err = ParseError;
    /// Accepts `52.37, 4.90`, with or without the space.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let read = || {
            let (latitude, longitude) = text.split_once(',')?;
            Self::new(latitude.trim().parse().ok()?, longitude.trim().parse().ok()?)
        };
        read().ok_or_else(|| ParseError::new("place", text, Self::ALLOWED))
    }
}

impl fmt::Display for Coordinates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.latitude(), self.longitude())
    }
}

impl From<Coordinates> for Degrees {
    fn from(place: Coordinates) -> Self {
        Self { latitude: place.latitude(), longitude: place.longitude() }
    }
}

impl TryFrom<Degrees> for Coordinates {
    type Error = String;
    fn try_from(Degrees { latitude, longitude }: Degrees) -> Result<Self, String> {
        let refuse = || format!("{latitude}, {longitude} is not a place: {}", Self::ALLOWED);
        Self::new(latitude, longitude).ok_or_else(refuse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written_back() {
        for (text, written) in [
            ("52.3702, 4.8952", "52.3702,4.8952"),
            ("-33.9,151.2", "-33.9,151.2"),
            ("90,-180", "90,-180"),
            (" 0 , 0 ", "0,0"),
            ("1.234567,0", "1.2346,0"),
        ] {
            let place: Coordinates = text.parse().unwrap();
            assert_eq!(place.to_string(), written);
            let json = serde_json::to_string(&place).unwrap();
            assert_eq!(serde_json::from_str::<Coordinates>(&json).unwrap(), place);
        }
        let json = serde_json::to_value("52.37,4.9".parse::<Coordinates>().unwrap()).unwrap();
        assert_eq!(json, serde_json::json!({"latitude": 52.37, "longitude": 4.9}));
    }

    #[test]
    fn distances_are_those_of_great_circles() {
        let place = |text: &str| text.parse::<Coordinates>().unwrap();
        for (from, to, expected) in [
            ("52.37,4.9", "52.37,4.9", 0),
            ("52.37,4.9", "51.51,-0.13", 357),
            ("52.37,4.9", "1.35,103.82", 10_500),
            ("-17.7,179.9", "-17.7,-179.9", 21),
            ("90,0", "-90,0", 20_015),
        ] {
            let km = place(from).km_to(place(to));
            assert_eq!(km, place(to).km_to(place(from)));
            assert!(km.abs_diff(expected) <= 10, "{from} to {to}: {km}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for text in ["", "52", "91,0", "0,181", "NaN,0", "0,inf", "1,2,3", "north,east"] {
            assert!(text.parse::<Coordinates>().is_err(), "{text}");
        }
        let beyond = r#"{"latitude": 90.1, "longitude": 0}"#;
        assert!(serde_json::from_str::<Coordinates>(beyond).is_err());
    }
}
