#!/bin/sh
# Chromium lets nobody but its own machine speak its protocol; as in the usual images of it, socat
# lets others in.
socat TCP-LISTEN:9222,fork,reuseaddr TCP:127.0.0.1:9223 &
exec chromium-headless-shell --no-sandbox --disable-gpu --remote-debugging-port=9223 "$@" about:blank
