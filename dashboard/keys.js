// The keys. Single characters act only where nobody is writing, never together with Ctrl, Alt or Meta, and
// not at all when they are turned off: some people speak to their computer, and their words become keys.

import { h, replace } from './dom.js';
import { links } from './parts.js';

const KEPT = 'longshore-keys';
const LEADER_LASTS = 1200;

const HELP = [
  ['/', 'to the filter of the view'],
  ['j k', 'to the next, the previous row'],
  ['Enter', 'open it'],
  ['Esc', 'clear the filter, close, go up'],
  ['g o', 'overview'],
  ['g a', 'apps'],
  ['g l', 'locations'],
  ['g e', 'events'],
  ['?', 'this help'],
];

const JUMPS = { o: links.overview, a: links.apps, l: links.locations, e: links.events };

function isWriting(target) {
  return (
    target instanceof HTMLElement &&
    (target.matches('input:not([type=checkbox]), select, textarea') || target.isContentEditable)
  );
}

function areOn() {
  return localStorage.getItem(KEPT) !== 'off';
}

// The rows that can be opened, those that are shown.
function rows() {
  return [...document.querySelectorAll('#main [data-row]')].filter((row) => row.getClientRects().length > 0);
}

function step(by) {
  const all = rows();
  if (all.length === 0) return;
  const at = all.indexOf(document.activeElement);
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + by, 0), all.length - 1);
  all[next].focus();
  all[next].closest('tr, li')?.scrollIntoView({ block: 'nearest' });
}

const dialog = document.getElementById('help');

export function showHelp() {
  const toggle = h('input', { type: 'checkbox', id: 'keys-on' });
  toggle.checked = areOn();
  toggle.addEventListener('change', () => localStorage.setItem(KEPT, toggle.checked ? 'on' : 'off'));
  replace(
    dialog,
    h('h2', { id: 'help-title' }, 'Keys'),
    h(
      'dl',
      { class: 'keys' },
      HELP.map(([key, does]) =>
        h(
          'div',
          {},
          h(
            'dt',
            {},
            key.split(' ').map((one) => h('kbd', {}, one)),
          ),
          h('dd', {}, does),
        ),
      ),
    ),
    h('label', { for: 'keys-on' }, toggle, ' Keys of a single character'),
    h(
      'p',
      { class: 'quiet' },
      'The dashboard only looks. What changes something is in the CLI: longshore deploy, scale, rollback, promote, stop, exec.',
    ),
    h('form', { method: 'dialog' }, h('button', { class: 'primary' }, 'Close')),
  );
  if (!dialog.open) dialog.showModal();
}

// `view()` gives the view that is shown; `isIn()` whether somebody is logged in.
export function listenToKeys({ view, isIn }) {
  let leader = 0;
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (!isIn() || dialog.open) return;
    const { target, key } = event;
    if (key === 'Escape') {
      escape(target, view());
      return;
    }
    if (isWriting(target)) {
      if (key === 'Enter' && target.matches('.filter')) {
        event.preventDefault();
        rows()[0]?.focus();
      }
      return;
    }
    if (!areOn()) return;
    const jump = event.timeStamp - leader < LEADER_LASTS ? JUMPS[key] : null;
    leader = key === 'g' ? event.timeStamp : 0;
    if (jump) location.hash = jump();
    else if (key === '/' && view().filter) view().filter.focus();
    else if (key === 'j') step(1);
    else if (key === 'k') step(-1);
    else if (key === '?') showHelp();
    else return;
    event.preventDefault();
  });
}

function escape(target, view) {
  if (target.matches?.('.filter')) {
    if (target.value !== '') {
      target.value = '';
      target.dispatchEvent(new Event('input'));
    } else {
      target.blur();
    }
  } else if (view.up) {
    location.hash = view.up;
  }
}
