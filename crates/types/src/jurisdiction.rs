//! Countries, and groups of countries under one law.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::{ParseError, nearest, text_type};

/// The officially assigned two-letter codes of ISO 3166-1.
const COUNTRIES: &str = "AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ \
    BL BM BN BO BQ BR BS BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE \
    DJ DK DM DO DZ EC EE EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR \
    GS GT GU GW GY HK HM HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP \
    KR KW KY KZ LA LB LC LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT \
    MU MV MW MX MY MZ NA NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW \
    PY QA RE RO RS RU RW SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG \
    TH TJ TK TL TM TN TO TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS YE YT ZA ZM ZW";

/// A country by its two-letter code in ISO 3166-1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// What a text of one looks like.
    pub const ALLOWED: &str = "a two-letter country code of ISO 3166, such as NL";

    /// The code in capital letters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a code is two letters")
    }
}

impl FromStr for Country {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let upper = text.to_ascii_uppercase();
        match upper.as_bytes() {
            [first, second] if COUNTRIES.split(' ').any(|code| code == upper) => {
                Ok(Self([*first, *second]))
            }
            _ => Err(ParseError::new("country", text, Self::ALLOWED)),
        }
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

text_type!(Country, { "pattern": "^[A-Za-z]{2}$" });

/// Countries that one law binds together.
///
/// A group has the codes of its members and no others. A territory with a code of its own, such as GP or AX,
/// is not matched by the group of the state that it belongs to, whatever its own treaties say: who means it
/// names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CountryGroup {
    /// The European Union: the states of article 52 of the Treaty on European Union, since the United
    /// Kingdom left (1 February 2020).
    Eu,
    /// The European Economic Area: the European Union and the three others of the agreement of 1992 that
    /// take part (article 2, as adapted in 2004).
    Eea,
    /// The European Free Trade Association: the members by its convention (Vaduz, 2001).
    Efta,
}

const EU: [&str; 27] = [
    "AT", "BE", "BG", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GR", "HR", "HU", "IE", "IT",
    "LT", "LU", "LV", "MT", "NL", "PL", "PT", "RO", "SE", "SI", "SK",
];
const EEA_BEYOND_EU: [&str; 3] = ["IS", "LI", "NO"];
const EFTA: [&str; 4] = ["CH", "IS", "LI", "NO"];

impl CountryGroup {
    /// All, by the names that they are written with.
    pub const ALL: [(&str, Self); 3] = [("eu", Self::Eu), ("eea", Self::Eea), ("efta", Self::Efta)];

    /// Whether a country belongs to it.
    pub fn has(self, country: Country) -> bool {
        let code = country.as_str();
        match self {
            Self::Eu => EU.contains(&code),
            Self::Eea => EU.contains(&code) || EEA_BEYOND_EU.contains(&code),
            Self::Efta => EFTA.contains(&code),
        }
    }
}

/// Where a law holds: a country, or a group of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Jurisdiction {
    /// One country.
    Country(Country),
    /// A group of countries.
    Group(CountryGroup),
}

/// Whether what is in a country is in one of these; anything is where there are none, and what is in a country
/// that nobody said is in none.
pub fn is_within(all: &BTreeSet<Jurisdiction>, country: Option<Country>) -> bool {
    all.is_empty() || country.is_some_and(|country| all.iter().any(|one| one.has(country)))
}

impl Jurisdiction {
    /// What a text of one looks like.
    pub const ALLOWED: &str = "a two-letter country code of ISO 3166, or one of eu, eea, efta";

    /// Whether what is in a country is within.
    pub fn has(self, country: Country) -> bool {
        match self {
            Self::Country(own) => own == country,
            Self::Group(group) => group.has(country),
        }
    }

    /// What is allowed in the place of a text that is none, with the name that may have been meant.
    pub fn instead_of(text: &str) -> String {
        let lower = text.to_ascii_lowercase();
        // The one code that many write and ISO 3166 has not.
        let meant = match lower.as_str() {
            "uk" => Some("GB"),
            // Two letters are near to very many others.
            _ if lower.len() < 3 => None,
            _ => nearest(CountryGroup::ALL.map(|(name, _)| name), &lower),
        };
        match meant {
            Some(meant) => format!("{}; did you mean {meant:?}?", Self::ALLOWED),
            None => Self::ALLOWED.to_owned(),
        }
    }
}

impl FromStr for Jurisdiction {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let lower = text.to_ascii_lowercase();
        let group = CountryGroup::ALL.into_iter().find(|(name, _)| *name == lower);
        match (group, text.parse()) {
            (Some((_, group)), _) => Ok(Self::Group(group)),
            (None, Ok(country)) => Ok(Self::Country(country)),
            (None, Err(_)) => Err(ParseError::new("jurisdiction", text, Self::ALLOWED)),
        }
    }
}

impl fmt::Display for Jurisdiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name =
            |own: CountryGroup| CountryGroup::ALL.into_iter().find(|(_, group)| *group == own);
        match self {
            Self::Country(country) => country.fmt(f),
            Self::Group(group) => f.pad(name(*group).map_or("", |(name, _)| name)),
        }
    }
}

text_type!(Jurisdiction, { "pattern": "^[A-Za-z]{2,4}$" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_the_codes_that_they_should() {
        let codes: Vec<_> = COUNTRIES.split(' ').collect();
        let distinct: BTreeSet<_> = codes.iter().collect();
        assert_eq!((codes.len(), distinct.len()), (249, 249));
        assert!(codes.is_sorted());
        for code in EU.iter().chain(&EEA_BEYOND_EU).chain(&EFTA) {
            assert!(code.parse::<Country>().is_ok(), "{code}");
        }
        assert!(EU.is_sorted());
    }

    #[test]
    fn a_jurisdiction_has_its_countries_and_no_others() {
        for (jurisdiction, country, expected) in [
            ("eu", "NL", true),
            ("EU", "nl", true),
            ("eu", "GB", false),
            ("eu", "NO", false),
            ("eu", "GP", false),
            ("eea", "no", true),
            ("eea", "CH", false),
            ("efta", "CH", true),
            ("efta", "DE", false),
            ("ch", "CH", true),
            ("ch", "DE", false),
        ] {
            let jurisdiction: Jurisdiction = jurisdiction.parse().unwrap();
            let country = country.parse().unwrap();
            assert_eq!(jurisdiction.has(country), expected, "{jurisdiction} {country}");
        }
    }

    #[test]
    fn what_is_no_country_is_refused_and_the_nearest_is_told() {
        for text in ["", "n", "nld", "EU2", "XX", "uk", "€"] {
            assert!(text.parse::<Country>().is_err(), "{text}");
            assert!(text.parse::<Jurisdiction>().is_err(), "{text}");
        }
        assert!("eu".parse::<Country>().is_err());
        for (text, meant) in [("eaa", "\"eea\""), ("UK", "\"GB\""), ("efat", "\"efta\"")] {
            assert!(Jurisdiction::instead_of(text).ends_with(&format!("did you mean {meant}?")));
        }
        assert_eq!(Jurisdiction::instead_of("xx"), Jurisdiction::ALLOWED);
        for (text, written) in [("nl", "NL"), ("EEA", "eea")] {
            assert_eq!(text.parse::<Jurisdiction>().unwrap().to_string(), written);
        }
    }
}
