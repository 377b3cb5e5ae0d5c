// What an instance writes, as it writes it.

import { follow, part } from '../api.js';
import { h, setText } from '../dom.js';
import { clock, dateTime, plainText } from '../format.js';
import { live } from '../live.js';
import { filterField } from '../parts.js';

// Older lines leave the page; the CLI has all of them.
const KEPT = 2000;
const TAIL = 300;
// How near the end counts as being there, in pixels.
const NEAR = 24;

function lineElement({ at, stream, text }) {
  const shown = plainText(text);
  const isError = stream === 'stderr';
  const line = h(
    'div',
    { class: isError ? 'log-line stderr' : 'log-line' },
    h('time', { title: dateTime(at) }, clock(at)),
    isError ? h('span', { class: 'sr' }, 'standard error: ') : null,
    h('span', { class: 'log-text' }, shown),
  );
  line.plain = shown.toLowerCase();
  return line;
}

export function logPane(instance) {
  const abort = new AbortController();
  const lines = h('div', { class: 'log-lines' });
  const pane = h(
    'div',
    { class: 'log', role: 'log', 'aria-live': 'off', 'aria-label': `Log of ${instance}`, tabindex: '0' },
    lines,
  );
  const status = h('span', { class: 'quiet' }, 'Connecting …');
  const following = h('input', { type: 'checkbox', id: 'log-follow' });
  following.checked = true;
  let wanted = '';
  let waiting = [];
  let frame = 0;
  let lastAt = 0;

  const filter = filterField('Filter lines', (text) => {
    wanted = text;
    for (const line of lines.children) line.hidden = !line.plain.includes(wanted);
    toEnd();
  });

  function toEnd() {
    if (following.checked) pane.scrollTop = pane.scrollHeight;
  }

  // Lines may come faster than they can be shown: what came within a frame is shown in one go.
  function put() {
    frame = 0;
    const elements = waiting.slice(-KEPT).map(lineElement);
    waiting = [];
    for (const line of elements) line.hidden = !line.plain.includes(wanted);
    lines.append(...elements);
    while (lines.childElementCount > KEPT) lines.firstElementChild.remove();
    toEnd();
  }

  // Whoever scrolls up wants to read; whoever comes back to the end wants to follow.
  function noticeScroll() {
    requestAnimationFrame(() => {
      following.checked = pane.scrollHeight - pane.scrollTop - pane.clientHeight < NEAR;
    });
  }
  following.addEventListener('change', toEnd);
  for (const event of ['wheel', 'keyup', 'touchend']) {
    pane.addEventListener(event, noticeScroll, { passive: true });
  }

  const path = `/projects/${part(live.project)}/instances/${part(instance)}/logs`;
  follow(`${path}?tail=${TAIL}&follow=true`, {
    accept: 'application/jsonl',
    signal: abort.signal,
    once: true,
    onData(line) {
      // After a lost connection the newest come once more.
      if (line.at < lastAt) return;
      lastAt = line.at;
      waiting.push(line);
      frame ||= requestAnimationFrame(put);
    },
    onState(connected, problem) {
      setText(status, connected ? 'Live' : (problem?.message ?? 'The log has ended.'));
    },
  });
  const head = h(
    'div',
    { class: 'log-head' },
    filter,
    h('label', { for: 'log-follow' }, following, ' Follow'),
    status,
  );
  return { element: h('div', {}, head, pane), filter, close: () => abort.abort() };
}
