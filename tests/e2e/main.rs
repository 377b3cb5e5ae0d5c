//! What Longshore promises, tried on the release binary. One file per promise.
