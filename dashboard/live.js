// What changes by itself and more than one view shows: the apps of the project, the locations, the events.
//
// The apps come by a watch that leaves the instances out (there may be ten thousand), events by their
// stream, locations are asked for again and again without their nodes. Each is attended to only while the
// view that is shown needs it and somebody sees the page: a browser opens six connections to a server, and
// those of a forgotten tab would be missing in the next one.

import { follow, get, part } from './api.js';

const KEPT_EVENTS = 200;
const LOCATIONS_EVERY = 5000;
const ACCEPT = 'text/event-stream';

export const live = {
  project: null,
  caller: null,
  health: null,
  // Null until they were told.
  apps: null,
  locations: null,
  events: null,
  problem: null,
};

// How each is attended to, until `signal`.
const FEEDS = { apps: followApps, events: followEvents, locations: pollLocations };

const listeners = new Set();
// What the view needs, and what is attended to now, with how it is ended and whether it is connected.
let needed = [];
const running = new Map();
let frame = 0;

export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// Tells of news once per frame, however much comes.
function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    for (const listener of listeners) listener(live);
  });
}

export function isLive() {
  return [...running.values()].every((feed) => feed.connected);
}

export function appOf(name) {
  return live.apps?.find((app) => app.app === name) ?? null;
}

// Says what the view that is shown needs.
export function attend(names) {
  needed = names;
  settle();
}

function settle() {
  const wanted = document.hidden || live.project === null ? [] : needed;
  for (const [name, feed] of running) {
    if (wanted.includes(name)) continue;
    feed.abort.abort();
    running.delete(name);
  }
  for (const name of wanted) {
    if (running.has(name)) continue;
    const feed = { abort: new AbortController(), connected: false };
    running.set(name, feed);
    FEEDS[name](feed.abort.signal, (connected, problem) => {
      if (feed.abort.signal.aborted) return;
      feed.connected = connected;
      live.problem = problem?.message ?? null;
      changed();
    });
  }
  changed();
}

function followApps(signal, onState) {
  follow(`/projects/${part(live.project)}/watch?instances=false`, {
    accept: ACCEPT,
    signal,
    onState,
    onData(state, kind) {
      live.apps = kind === 'change' ? appsAfter(state) : state.apps;
      changed();
    },
  });
}

function followEvents(signal, onState) {
  follow('/events', {
    accept: ACCEPT,
    signal,
    onState(connected, problem) {
      onState(connected, problem);
      if (connected) listEvents(signal, onState);
    },
    onData(event, kind) {
      if (kind === 'event') tell([event]);
    },
  });
}

// What is empty is left out of a change.
function appsAfter({ apps = [], apps_gone: gone = [] }) {
  const byName = new Map((live.apps ?? []).map((app) => [app.app, app]));
  for (const app of apps) byName.set(app.app, app);
  for (const name of gone) byName.delete(name);
  return [...byName.values()].sort((a, b) => (a.app < b.app ? -1 : 1));
}

// What was told before the stream of events began; both may have what came in between.
async function listEvents(signal, onState) {
  try {
    tell(await get(`/events?limit=${KEPT_EVENTS}`, { signal }));
  } catch (problem) {
    if (!signal.aborted) onState(false, problem);
  }
}

function tell(events) {
  const key = (event) => `${event.at} ${event.what} ${event.subject}`;
  const known = new Map((live.events ?? []).map((event) => [key(event), event]));
  for (const event of events) known.set(key(event), { ...event, key: key(event) });
  live.events = [...known.values()].sort((a, b) => a.at - b.at).slice(-KEPT_EVENTS);
  changed();
}

async function pollLocations(signal, onState) {
  while (!signal.aborted) {
    try {
      live.locations = await get('/locations?nodes=false', { signal });
      onState(true, null);
    } catch (problem) {
      if (signal.aborted) return;
      onState(false, problem);
    }
    await new Promise((resolve) => setTimeout(resolve, LOCATIONS_EVERY));
  }
}

export function watchProject(project) {
  if (live.project === project) return;
  endFeed('apps');
  Object.assign(live, { project, apps: null });
  settle();
}

function endFeed(name) {
  running.get(name)?.abort.abort();
  running.delete(name);
}

export function endWatching() {
  Object.assign(live, { project: null, apps: null, locations: null, events: null });
  settle();
}

document.addEventListener('visibilitychange', settle);
