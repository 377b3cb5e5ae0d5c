// One instance: how it is, why it is where it is, what it uses, what it writes.

import { get, part } from '../api.js';
import { h, replace, setText } from '../dom.js';
import { bytes, count, dateTime, release } from '../format.js';
import { live } from '../live.js';
import { chip, exitText, facts, links, notice, pageHead, panel, phaseOf } from '../parts.js';
import { decisionBlock, stagesBlock } from './explain.js';
import { logPane } from './logs.js';
import { usageBlock } from './usage.js';

const EVERY = 2000;
const IMAGE = { cached: 'was on the node', pulled: 'was pulled' };

// Which GPUs of its node it has, and how much of each.
function gpus(shares) {
  return (shares ?? []).map(({ index, memory }) => `${bytes(memory)} of GPU ${index}`).join(', ');
}

function aboutRows(instance) {
  const { observed } = instance;
  return [
    ['App', h('a', { href: links.app(instance.app) }, instance.app)],
    ['Release', release(instance.release) + (instance.is_command ? ', its command' : '')],
    ['Location', h('a', { href: links.location(instance.location) }, instance.location)],
    ['Node', instance.node],
    ['GPUs', gpus(instance.gpus)],
    ['Assigned', dateTime(instance.created_at)],
    ['Started', observed.started_at ? dateTime(observed.started_at) : null],
    ['Ready', observed.ready_at ? dateTime(observed.ready_at) : null],
    ['Restarts', count(observed.restarts)],
    ['Last end', observed.last_exit ? exitText(observed.last_exit) : null],
    ['Image', IMAGE[observed.path]],
    ['Address', observed.address],
  ];
}

export function instanceView({ instance: id }) {
  const abort = new AbortController();
  const { signal } = abort;
  const project = `/projects/${part(live.project)}`;
  const state = chip();
  const note = notice('warn');
  const problemLine = notice('bad');
  const about = facts();
  const usage = usageBlock();
  const location = decisionBlock('Location');
  const node = decisionBlock('Node');
  const decisions = h('div', { class: 'decisions' }, location, node);
  const stages = stagesBlock();
  const logs = logPane(id);
  const trail = h('p', { class: 'trail' }, ' ');
  let app = null;

  function show(instance) {
    body.hidden = false;
    if (app !== instance.app) {
      app = instance.app;
      view.up = links.app(app);
      const up = [
        h('a', { href: links.overview() }, live.project),
        ' / ',
        h('a', { href: links.app(app) }, app),
        ' /',
      ];
      replace(trail, up);
    }
    state.update(phaseOf(instance));
    note.update(instance.observed.note);
    about.update(aboutRows(instance));
    stages.update(instance.observed.stages);
  }

  async function refresh() {
    try {
      show(await get(`${project}/instances/${part(id)}`, { signal }));
      problemLine.update(null);
      const [used] = await get(`${project}/usage?instance=${part(id)}`, { signal });
      usage.update(used);
    } catch (problem) {
      if (signal.aborted) return;
      const isGone = problem.status === 404;
      problemLine.update(isGone ? `There is no instance ${id}${app ? ' any more' : ''}.` : problem.message);
      // An id is never used again.
      if (isGone) clearInterval(timer);
    }
  }

  async function explain() {
    try {
      const told = await get(`${project}/instances/${part(id)}/explain`, { signal });
      location.update(told.instance.location, told.location);
      node.update(told.instance.node, told.node);
    } catch (problem) {
      if (!signal.aborted) replace(decisions, h('p', { class: 'quiet' }, problem.message));
    }
  }

  const head = pageHead(id, [], state);
  head.prepend(trail);
  const body = h(
    'div',
    { class: 'page-body', hidden: true },
    note,
    h('section', { class: 'panel', 'aria-label': 'About' }, about),
    panel('Usage', usage.element).element,
    panel('Log', logs.element).element,
    panel('Why here', decisions, stages).element,
  );
  const timer = setInterval(() => document.hidden || refresh(), EVERY);
  const view = {
    title: id,
    element: h('div', { class: 'page instance' }, head, problemLine, body),
    filter: logs.filter,
    up: links.apps(),
    update() {},
    close() {
      clearInterval(timer);
      abort.abort();
      logs.close();
    },
  };
  refresh();
  explain();
  return view;
}
