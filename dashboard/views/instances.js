// A list of instances, page by page: an app may have ten thousand.

import { get, part } from '../api.js';
import { h, keyed, setAttribute, setText } from '../dom.js';
import { ago, release } from '../format.js';
import { live } from '../live.js';
import { cell, chip, emptyLine, links, phaseOf, row, table } from '../parts.js';

const PAGE = 50;
const EVERY = 3000;
// Between two looks, however much changes.
const REST = 400;

function instanceRow(first) {
  const id = first.observed.instance;
  const state = chip();
  const number = h('span');
  const node = h('span');
  const restarts = h('span');
  const since = h('span');
  const note = h('span', { class: 'note' });
  const element = row(
    h('a', { href: links.instance(id), 'data-row': '', class: 'id' }, id),
    cell('State', state),
    cell('Release', number),
    cell('Where', h('a', { href: links.location(first.location) }, first.location), ' / ', node),
    cell('Restarts', restarts),
    cell('Started', since),
    cell('Note', note),
  );
  element.update = (instance) => {
    const { observed } = instance;
    state.update(phaseOf(instance));
    setText(number, instance.is_command ? `${release(instance.release)} command` : release(instance.release));
    setText(node, instance.node);
    setText(restarts, observed.restarts);
    setText(since, ago(observed.started_at ?? instance.created_at));
    setText(note, observed.note);
    setAttribute(note, 'title', observed.note);
  };
  return element;
}

// `query` narrows the list down, such as `app=web`. Asks again by itself and when told to (`refresh`).
export function instanceList(query) {
  const columns = ['Instance', 'State', 'Release', 'Where', 'Restarts', 'Started', 'Note'];
  const list = table('Instances', columns);
  const none = emptyLine();
  const more = h('button', { type: 'button', class: 'more', hidden: true }, `Show ${PAGE} more`);
  const element = h('div', {}, list.element, none, more);
  const abort = new AbortController();
  let pages = 1;
  let asking = false;
  let again = false;

  async function ask() {
    const found = [];
    let isFull = true;
    // Each page begins after the last id of the one before it, which never changes.
    for (let page = 0; page < pages && isFull; page += 1) {
      const after = found.length > 0 ? `&after=${part(found.at(-1).observed.instance)}` : '';
      const path = `/projects/${part(live.project)}/instances?${query}&limit=${PAGE}${after}`;
      const got = await get(path, { signal: abort.signal });
      found.push(...got);
      isFull = got.length === PAGE;
    }
    keyed(list.body, found, (instance) => instance.observed.instance, instanceRow);
    list.element.hidden = found.length === 0;
    none.update(found.length === 0 ? 'None.' : null);
    more.hidden = !isFull;
  }

  async function refresh() {
    again = true;
    if (asking) return;
    asking = true;
    while (again && !abort.signal.aborted) {
      again = false;
      try {
        await ask();
      } catch (problem) {
        if (!abort.signal.aborted) none.update(problem.message);
      }
      await new Promise((resolve) => setTimeout(resolve, REST));
    }
    asking = false;
  }

  more.addEventListener('click', () => {
    pages += 1;
    refresh();
  });
  none.update('Loading …');
  list.element.hidden = true;
  const timer = setInterval(() => document.hidden || refresh(), EVERY);
  refresh();
  return {
    element,
    refresh,
    close() {
      clearInterval(timer);
      abort.abort();
    },
  };
}
