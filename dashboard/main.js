// Who is logged in, which view is shown, what stands around it.

import { Problem, get, session, whenSessionEnds } from './api.js';
import { h, replace, setAttribute, setText } from './dom.js';
import { listenToKeys, showHelp } from './keys.js';
import { attend, endWatching, isLive, live, subscribe, watchProject } from './live.js';
import { links } from './parts.js';
import { appView } from './views/app.js';
import { appsView } from './views/apps.js';
import { eventsView } from './views/events.js';
import { instanceView } from './views/instance.js';
import { locationView } from './views/location.js';
import { locationsView } from './views/locations.js';
import { loginView } from './views/login.js';
import { overview } from './views/overview.js';

// The path of a view, as the part behind `#`; names after a colon are passed on.
const ROUTES = [
  ['/projects/:project', overview, 'overview'],
  ['/projects/:project/apps', appsView, 'apps'],
  ['/projects/:project/apps/:app', appView, 'apps'],
  ['/projects/:project/instances/:instance', instanceView, 'apps'],
  ['/locations', locationsView, 'locations'],
  ['/locations/:location', locationView, 'locations'],
  ['/events', eventsView, 'events'],
];

const byId = (id) => document.getElementById(id);
const main = byId('main');
let view = null;

function matchOf(pattern, path) {
  const [names, parts] = [pattern.split('/'), path.split('/')];
  if (names.length !== parts.length) return null;
  const params = {};
  for (const [idx, name] of names.entries()) {
    if (!name.startsWith(':')) {
      if (name !== parts[idx]) return null;
      continue;
    }
    try {
      params[name.slice(1)] = decodeURIComponent(parts[idx]);
    } catch {
      return null;
    }
  }
  return params;
}

function found(path) {
  for (const [pattern, make, section] of ROUTES) {
    const params = matchOf(pattern, path);
    if (params) return { params, make, section };
  }
  return null;
}

function show(next) {
  view?.close?.();
  view = next;
  attend(next.needs ?? []);
  replace(main, next.element);
  document.title = `${next.title} · Longshore`;
  next.update(live);
  if (next.focus) next.focus();
  else next.element.querySelector('h1')?.focus({ preventScroll: true });
  window.scrollTo(0, 0);
}

function route() {
  if (!live.caller) return;
  const path = location.hash.slice(1).replace(/\/$/, '');
  const match = found(path);
  if (!match) {
    location.replace(links.overview());
    return;
  }
  if (match.params.project) watchProject(match.params.project);
  byId('project').value = live.project;
  drawNavigation(match.section);
  show(match.make(match.params));
}

function drawNavigation(section) {
  const entries = [
    ['overview', 'Overview', links.overview()],
    ['apps', 'Apps', links.apps()],
    ['locations', 'Locations', links.locations()],
    ['events', 'Events', links.events()],
  ];
  replace(
    byId('nav'),
    entries.map(([name, text, href]) =>
      h('a', { href, 'aria-current': name === section ? 'page' : null }, text),
    ),
  );
}

function drawAround() {
  const { caller, health } = live;
  byId('bar').hidden = false;
  byId('foot').hidden = false;
  const select = byId('project');
  replace(
    select,
    caller.projects.map((name) => h('option', { value: name }, name)),
  );
  select.parentElement.hidden = caller.projects.length < 2;
  const role = caller.rights.admin
    ? 'administrator'
    : [...new Set((caller.rights.roles ?? []).map((one) => one.role))].join(', ');
  replace(
    byId('foot'),
    h('span', {}, `Token ${caller.token} (${role}). The dashboard only looks.`),
    h('span', {}, `Longshore ${health?.version ?? ''}. Map: Natural Earth.`),
  );
}

function drawLive() {
  const element = byId('live');
  const on = isLive();
  setAttribute(element, 'class', on ? 'live ok' : 'live busy');
  setText(element, on ? 'Live' : 'Connecting …');
  setAttribute(element, 'title', on ? 'What is shown changes by itself' : (live.problem ?? ''));
}

// Begins with a token; says what is wrong with it when it is.
async function enter(token) {
  session.keep(token);
  try {
    const [caller, health] = await Promise.all([get('/whoami'), get('/health')]);
    Object.assign(live, { caller, health });
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    // A server that does not answer says nothing about the token: loading the page again may do.
    if (problem.status === 401 || problem.status === 403) session.forget();
    return problem.message;
  }
  drawAround();
  live.project = null;
  const wanted = found(location.hash.slice(1))?.params.project;
  watchProject(wanted ?? live.caller.projects[0] ?? 'default');
  route();
  return null;
}

function leave(message) {
  endWatching();
  session.forget();
  live.caller = null;
  byId('bar').hidden = true;
  byId('foot').hidden = true;
  byId('help').close();
  show(loginView({ enter, message }));
}

whenSessionEnds((detail) => live.caller && leave(detail));
subscribe(() => {
  drawLive();
  if (live.caller) view?.update(live);
});
addEventListener('hashchange', route);
byId('project').addEventListener('change', (event) => {
  location.hash = `#/projects/${encodeURIComponent(event.target.value)}`;
});
byId('log-out').addEventListener('click', () => leave());
// The part behind `#` is the view's, so the link cannot lead there by itself.
document.querySelector('.skip').addEventListener('click', (event) => {
  event.preventDefault();
  main.focus();
});
byId('help-button').addEventListener('click', showHelp);
listenToKeys({ view: () => view, isIn: () => Boolean(live.caller) });

const wrong = session.token ? await enter(session.token) : '';
if (wrong !== null) show(loginView({ enter, message: wrong }));
