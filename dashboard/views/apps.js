// The apps of the project.

import { h, keyed, setAttribute, setText } from '../dom.js';
import { release } from '../format.js';
import { cell, chip, emptyLine, filterField, links, pageHead, progress, row, table } from '../parts.js';

// Those that need a look come first.
const ORDER = ['failed', 'waiting', 'rolling', 'releasing', 'canary', 'removing', 'running', 'stopped'];

function appRow(first) {
  const state = chip();
  const level = progress();
  const number = h('span');
  const image = h('code');
  const note = h('span', { class: 'note' });
  const element = row(
    h('a', { href: links.app(first.app), 'data-row': '' }, first.app),
    cell('State', state),
    cell('Instances', level),
    cell('Release', number),
    cell('Image', image),
    cell('Note', note),
  );
  element.update = (app) => {
    state.update(app.state);
    level.update(app);
    const tried = app.canary ? ` beside ${release(app.canary.beside)}` : '';
    setText(number, `${release(app.release)}${tried}`);
    setText(image, app.image);
    setAttribute(image, 'title', app.image);
    setText(note, app.note);
    setAttribute(note, 'title', app.note);
  };
  return element;
}

export function appTable() {
  let wanted = '';
  let last = null;
  const list = table('Apps', ['App', 'State', 'Instances', 'Release', 'Image', 'Note']);
  const none = emptyLine();
  const element = h('div', {}, list.element, none);
  const filter = filterField('Filter apps', (text) => {
    wanted = text;
    update(last);
  });

  function update(apps) {
    last = apps;
    const matches = (app) => `${app.app} ${app.image} ${app.state}`.toLowerCase().includes(wanted);
    const shown = (apps ?? []).filter(matches);
    shown.sort((a, b) => ORDER.indexOf(a.state) - ORDER.indexOf(b.state) || (a.app < b.app ? -1 : 1));
    keyed(list.body, shown, (app) => app.app, appRow);
    list.element.hidden = shown.length === 0;
    let text = null;
    if (!apps) text = 'Loading …';
    else if (apps.length === 0) text = 'No app is deployed in this project.';
    else if (shown.length === 0) text = 'No app matches.';
    none.update(text);
  }
  return { element, filter, update };
}

export function appsView() {
  const apps = appTable();
  return {
    title: 'Apps',
    needs: ['apps'],
    element: h(
      'div',
      { class: 'page' },
      pageHead('Apps', [], apps.filter),
      h('section', { class: 'panel', 'aria-label': 'Apps' }, apps.element),
    ),
    filter: apps.filter,
    up: links.overview(),
    update: (live) => apps.update(live.apps),
  };
}
