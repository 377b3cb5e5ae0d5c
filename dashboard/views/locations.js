// All locations.

import { h, keyed, setAttribute, setText } from '../dom.js';
import { count } from '../format.js';
import { live } from '../live.js';
import { worldMap } from '../map.js';
import { capacityCells, cell, chip, emptyLine, filterField, links, pageHead, row, standing, table } from '../parts.js';

// Each column with what it is sorted by, and whether the largest come first.
const COLUMNS = [
  ['Location', (one) => one.location, false],
  ['State', (one) => (one.reachable ? 1 : 0), false],
  ['Nodes', (one) => one.n_nodes, true],
  ['Instances', (one) => one.instances, true],
  ['CPU', (one) => share(one, 'cpu'), true],
  ['Memory', (one) => share(one, 'memory'), true],
  ['Disk', (one) => share(one, 'disk'), true],
];

function share({ promised, capacity }, of) {
  return capacity[of] > 0 ? promised[of] / capacity[of] : 0;
}

function locationRow(first) {
  const state = chip();
  const nodes = h('span');
  const instances = h('span');
  const capacity = capacityCells();
  const element = row(
    h('a', { href: links.location(first.location), 'data-row': '' }, first.location),
    cell('State', state),
    cell('Nodes', nodes),
    cell('Instances', instances),
    capacity.cells,
  );
  element.update = (location) => {
    state.update(standing(location));
    setText(nodes, `${count(location.n_reachable)} of ${count(location.n_nodes)}`);
    setText(instances, `${count(location.ready)} of ${count(location.instances)} ready`);
    capacity.update(location.promised, location.capacity);
  };
  return element;
}

function ordered(locations, [, key, largestFirst]) {
  const way = largestFirst ? -1 : 1;
  const compare = (a, b) => (a < b ? -1 : Number(a > b));
  return locations.sort((a, b) => way * compare(key(a), key(b)) || compare(a.location, b.location));
}

export function locationsView() {
  let wanted = '';
  let sorted = 0;
  const map = worldMap();
  const list = table(
    'Locations',
    COLUMNS.map(([name]) => name),
  );
  const none = emptyLine();
  const filter = filterField('Filter locations', (text) => {
    wanted = text;
    update();
  });
  list.heads.forEach((head, idx) => {
    const sort = () => {
      sorted = idx;
      update();
    };
    head.replaceChildren(
      h('button', { type: 'button', class: 'sort', on: { click: sort } }, head.textContent),
    );
  });

  function update() {
    if (!live.locations) {
      none.update('Loading …');
      return;
    }
    map.update(live.locations);
    const text = (one) => `${one.location} ${standing(one)}`;
    const shown = ordered(
      live.locations.filter((one) => text(one).includes(wanted)),
      COLUMNS[sorted],
    );
    const direction = COLUMNS[sorted][2] ? 'descending' : 'ascending';
    list.heads.forEach((head, idx) => setAttribute(head, 'aria-sort', idx === sorted ? direction : null));
    keyed(list.body, shown, (one) => one.location, locationRow);
    list.element.hidden = shown.length === 0;
    const empty = live.locations.length === 0 ? 'No location has reported.' : 'No location matches.';
    none.update(shown.length > 0 ? null : empty);
  }
  return {
    title: 'Locations',
    needs: ['locations'],
    element: h(
      'div',
      { class: 'page' },
      pageHead('Locations', [], filter),
      h('section', { class: 'panel map-low', 'aria-label': 'Map' }, map.element),
      h('section', { class: 'panel', 'aria-label': 'List' }, list.element, none),
    ),
    filter,
    up: links.overview(),
    update,
  };
}
