// What every view shares and what changes by itself: the apps of the project, the locations, the events.
//
// The apps come by a watch that leaves the instances out (there may be ten thousand), events by their
// stream, locations are asked for again and again without their nodes. While nobody sees the page all of
// this stops: a browser opens six connections to a server, and those of a forgotten tab would be missing
// in the next one.

import { follow, get, part } from './api.js';

const KEPT_EVENTS = 200;
const LOCATIONS_EVERY = 5000;

export const live = {
  project: null,
  caller: null,
  health: null,
  // Absent until they were told.
  apps: null,
  locations: null,
  events: null,
  // When the last news of each came; null while its stream is broken.
  connected: { apps: false, events: false, locations: false },
  problem: null,
};

const listeners = new Set();
let running = null;
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
  return Object.values(live.connected).every(Boolean);
}

function connection(of) {
  return (connected, problem) => {
    live.connected[of] = connected;
    live.problem = problem?.message ?? null;
    changed();
  };
}

export function appOf(name) {
  return live.apps?.find((app) => app.app === name) ?? null;
}

function start() {
  const abort = new AbortController();
  running = abort;
  const { signal } = abort;
  const accept = 'text/event-stream';
  follow(`/projects/${part(live.project)}/watch?instances=false`, {
    accept,
    signal,
    onState: connection('apps'),
    onData(state, kind) {
      live.apps = kind === 'change' ? appsAfter(state) : state.apps;
      changed();
    },
  });
  follow('/events', {
    accept,
    signal,
    onState(connected, problem) {
      connection('events')(connected, problem);
      if (connected) listEvents(signal);
    },
    onData(event, kind) {
      if (kind === 'event') tell([event]);
    },
  });
  pollLocations(signal);
}

// What is empty is left out of a change.
function appsAfter({ apps = [], apps_gone: gone = [] }) {
  const byName = new Map((live.apps ?? []).map((app) => [app.app, app]));
  for (const app of apps) byName.set(app.app, app);
  for (const name of gone) byName.delete(name);
  return [...byName.values()].sort((a, b) => (a.app < b.app ? -1 : 1));
}

// What was told before the stream of events began; both may have what came in between.
async function listEvents(signal) {
  try {
    tell(await get(`/events?limit=${KEPT_EVENTS}`, { signal }));
  } catch (problem) {
    if (!signal.aborted) connection('events')(false, problem);
  }
}

function tell(events) {
  const key = (event) => `${event.at} ${event.what} ${event.subject}`;
  const known = new Map((live.events ?? []).map((event) => [key(event), event]));
  for (const event of events) known.set(key(event), { ...event, key: key(event) });
  live.events = [...known.values()].sort((a, b) => a.at - b.at).slice(-KEPT_EVENTS);
  changed();
}

async function pollLocations(signal) {
  while (!signal.aborted) {
    try {
      live.locations = await get('/locations?nodes=false', { signal });
      connection('locations')(true, null);
    } catch (problem) {
      if (signal.aborted) return;
      connection('locations')(false, problem);
    }
    await new Promise((resolve) => setTimeout(resolve, LOCATIONS_EVERY));
  }
}

function stop() {
  running?.abort();
  running = null;
}

export function watchProject(project) {
  if (live.project === project && running) return;
  stop();
  Object.assign(live, { project, apps: null });
  if (!document.hidden) start();
  changed();
}

export function endWatching() {
  stop();
  const connected = { apps: false, events: false, locations: false };
  Object.assign(live, { project: null, apps: null, locations: null, events: null, connected });
}

document.addEventListener('visibilitychange', () => {
  if (live.project === null) return;
  if (document.hidden) stop();
  else if (!running) start();
});
