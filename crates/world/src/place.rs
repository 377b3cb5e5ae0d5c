//! Places that a world can have, and how far they are from each other.

use std::time::Duration;

use longshore_types::Coordinates;

/// A city with a well-known code, which is also the name of a location there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    /// The IATA code of the city, or of its airport where it has but one, in lower case.
    pub code: &'static str,
    /// Its name in English.
    pub city: &'static str,
    /// The ISO 3166 code of its country.
    pub country: &'static str,
    latitude: f64,
    longitude: f64,
}

/// No place has that code or name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no place that is known here{}; known are {}", suggestion(*nearest), codes())]
pub struct UnknownPlace {
    /// What was given.
    pub given: String,
    /// The code of the place that was probably meant.
    pub nearest: Option<&'static str>,
}

fn codes() -> String {
    let codes: Vec<_> = PLACES.iter().map(|place| place.code).collect();
    codes.join(", ")
}

/// The same for every message.
pub(crate) fn suggestion(nearest: Option<&'static str>) -> String {
    nearest.map(|code| format!(" (did you mean {code}?)")).unwrap_or_default()
}

const fn place(
    code: &'static str,
    city: &'static str,
    country: &'static str,
    latitude: f64,
    longitude: f64,
) -> Place {
    Place { code, city, country, latitude, longitude }
}

/// Who asks for no certain places gets them from the first on: far from each other first. Where they
/// are is where their airports are.
const PLACES: [Place; 32] = [
    place("ams", "Amsterdam", "NL", 52.3086, 4.7639),
    place("nyc", "New York", "US", 40.6894, -74.1705),
    place("sin", "Singapore", "SG", 1.3502, 103.994),
    place("sao", "São Paulo", "BR", -23.4313, -46.47),
    place("tyo", "Tokyo", "JP", 35.7686, 140.3887),
    place("syd", "Sydney", "AU", -33.9461, 151.177),
    place("jnb", "Johannesburg", "ZA", -26.1401, 28.2468),
    place("lax", "Los Angeles", "US", 33.9425, -118.408),
    place("bom", "Mumbai", "IN", 19.0887, 72.8679),
    place("fra", "Frankfurt", "DE", 50.0267, 8.5584),
    place("dxb", "Dubai", "AE", 25.2498, 55.371),
    place("scl", "Santiago", "CL", -33.393, -70.7858),
    place("sto", "Stockholm", "SE", 59.6485, 17.9288),
    place("hkg", "Hong Kong", "HK", 22.3118, 113.9149),
    place("mex", "Mexico City", "MX", 19.4358, -99.0703),
    place("nbo", "Nairobi", "KE", -1.3189, 36.9282),
    place("akl", "Auckland", "NZ", -37.012, 174.7863),
    place("chi", "Chicago", "US", 41.9786, -87.9048),
    place("lon", "London", "GB", 51.4707, -0.4599),
    place("sel", "Seoul", "KR", 37.4691, 126.451),
    place("yto", "Toronto", "CA", 43.6759, -79.6294),
    place("mad", "Madrid", "ES", 40.4934, -3.5722),
    place("ist", "Istanbul", "TR", 41.2749, 28.7321),
    place("los", "Lagos", "NG", 6.5774, 3.3212),
    place("bue", "Buenos Aires", "AR", -34.8222, -58.5358),
    place("jkt", "Jakarta", "ID", -6.1256, 106.656),
    place("sea", "Seattle", "US", 47.4479, -122.3103),
    place("par", "Paris", "FR", 49.009, 2.5541),
    place("cai", "Cairo", "EG", 30.1115, 31.3967),
    place("waw", "Warsaw", "PL", 52.1657, 20.9671),
    place("bog", "Bogotá", "CO", 4.7016, -74.1469),
    place("mia", "Miami", "US", 25.796, -80.2898),
];

/// In a place, machines are a switch or two apart.
const WITHIN: Duration = Duration::from_micros(100);
/// What the first and the last kilometre take of one way.
const AT_THE_ENDS: Duration = Duration::from_millis(1);
/// Light in glass goes at two thirds of its speed, in kilometres a second.
const GLASS_SPEED: f64 = 299_792.458 * 2.0 / 3.0;
/// How much longer than the shortest way real ways are: the median of what is measured between cities
/// more than 500 km apart.
const DETOUR: f64 = 2.09;

impl Place {
    /// All of them.
    pub fn all() -> &'static [Self] {
        &PLACES
    }

    /// The one with that code or name, in letters of either case.
    pub fn find(text: &str) -> Result<&'static Self, UnknownPlace> {
        Self::find_among(PLACES.iter(), text).map(|(_, place)| place)
    }

    /// The same among some of them, with which of these it is.
    pub(crate) fn find_among(
        places: impl Iterator<Item = &'static Self> + Clone,
        text: &str,
    ) -> Result<(usize, &'static Self), UnknownPlace> {
        let given = text.to_lowercase();
        let is_it = |place: &Self| given == place.code || given == place.city.to_lowercase();
        places.clone().enumerate().find(|(_, place)| is_it(place)).ok_or_else(|| {
            let distance = |place: &Self| {
                let to = |name: &str| strsim::damerau_levenshtein(name, &given);
                to(place.code).min(to(&place.city.to_lowercase()))
            };
            let nearest = places.map(|place| (distance(place), place.code)).min();
            // Of three letters, two may be right and one not.
            let limit = (given.chars().count() / 3).max(1);
            let nearest = nearest.filter(|(distance, _)| *distance <= limit).map(|(_, code)| code);
            UnknownPlace { given: text.to_owned(), nearest }
        })
    }

    /// Where on Earth it is.
    pub fn coordinates(&self) -> Coordinates {
        Coordinates::new(self.latitude, self.longitude).expect("the table has places on Earth")
    }

    /// How far the other one is, in kilometres along the surface.
    pub fn distance_to(&self, other: &Self) -> f64 {
        self.coordinates().kilometres_to(other.coordinates())
    }

    /// How long a packet takes to get there.
    pub fn one_way_to(&self, other: &Self) -> Duration {
        if self.code == other.code {
            return WITHIN;
        }
        AT_THE_ENDS + Duration::from_secs_f64(DETOUR * self.distance_to(other) / GLASS_SPEED)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_place_is_on_earth_and_can_be_the_name_of_a_location() {
        let mut codes = BTreeSet::new();
        for place in Place::all() {
            let _ = place.coordinates();
            place.code.parse::<longshore_types::LocationName>().unwrap();
            assert_eq!(place.country.len(), 2);
            assert!(codes.insert(place.code), "{} is there twice", place.code);
        }
    }

    #[test]
    fn a_place_is_found_by_code_and_name_and_a_slip_is_told() {
        for text in ["sin", "SIN", "Singapore", "singapore"] {
            assert_eq!(Place::find(text).unwrap().code, "sin");
        }
        for (text, nearest) in
            [("sni", Some("sin")), ("Tokio", Some("tyo")), ("Atlantis", None), ("", None)]
        {
            let error = Place::find(text).unwrap_err();
            assert_eq!(error.nearest, nearest, "{text}");
        }
        let text = Place::find("Lodnon").unwrap_err().to_string();
        let begin =
            "\"Lodnon\" is no place that is known here (did you mean lon?); known are ams, nyc";
        assert!(text.starts_with(begin), "{text}");
    }

    #[test]
    fn distances_and_times_are_those_of_the_atlas() {
        let at = |code| Place::find(code).unwrap();
        for (from, to, km, rtt_ms) in [
            ("ams", "lon", 370, 10),
            ("ams", "nyc", 5_890, 125),
            ("ams", "sin", 10_510, 222),
            ("akl", "mad", 19_600, 412),
        ] {
            let distance = at(from).distance_to(at(to));
            assert!(
                (distance - f64::from(km)).abs() < f64::from(km) * 0.02,
                "{from} {to}: {distance}"
            );
            let rtt = 2 * at(from).one_way_to(at(to));
            let expected = Duration::from_millis(rtt_ms);
            assert!(rtt.abs_diff(expected) < expected / 20, "{from} {to}: {rtt:?}");
            assert_eq!(at(from).one_way_to(at(to)), at(to).one_way_to(at(from)));
        }
        assert_eq!(at("sin").one_way_to(at("sin")), WITHIN);
    }
}
