//! The files of the dashboard, as parts of the binary.

/// The page. In it, `{{base}}` is where the other files lie, and `{{modules}}` what names the modules.
pub const PAGE: &str = include_str!("../../../../dashboard/index.html");

macro_rules! files {
    ($($name:literal)*) => {
        /// Every other file by its path, with its text.
        pub const FILES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../../dashboard/", $name)))),*];
    };
}

files! {
    "api.js"
    "base.css"
    "dom.js"
    "format.js"
    "icon.svg"
    "keys.js"
    "live.js"
    "main.js"
    "map.js"
    "outline.js"
    "parts.js"
    "views.css"
    "views/app.js"
    "views/apps.js"
    "views/events.js"
    "views/explain.js"
    "views/instance.js"
    "views/instances.js"
    "views/location.js"
    "views/locations.js"
    "views/login.js"
    "views/logs.js"
    "views/overview.js"
    "views/usage.js"
}
