// The world with its locations. The list beside it says the same to those who do not see it, so the picture
// as a whole has a name and its points are not stops of the Tab key.

import { HEIGHT, LAND, SCALE, TOP, WIDTH } from './outline.js';
import { h, keyed, replace, setAttribute, setText, svg } from './dom.js';
import { count, plural } from './format.js';

// Equal Earth, as `cargo xtask outline` projects the land.
function place({ latitude, longitude }) {
  const root = Math.sqrt(3);
  const theta = Math.asin((root / 2) * Math.sin((latitude * Math.PI) / 180));
  const t2 = theta ** 2;
  const t6 = theta ** 6;
  const slope = 1.340264 + 3 * -0.081106 * t2 + t6 * (7 * 0.000893 + 9 * 0.003796 * t2);
  const x = (2 * ((longitude * Math.PI) / 180) * Math.cos(theta)) / (root * slope);
  const y = theta * (1.340264 - 0.081106 * t2 + t6 * (0.000893 + 0.003796 * t2));
  return { x: WIDTH / 2 + x * SCALE, y: TOP - y * SCALE };
}

// How many locations without coordinates are named.
const UNPLACED = 12;

function linkTo(location) {
  return `#/locations/${encodeURIComponent(location)}`;
}

// How a location fares, in a word that is also a class.
function condition(location) {
  if (!location.reachable) return 'bad';
  if (location.n_reachable < location.n_nodes) return 'warn';
  if (location.ready < location.instances) return 'busy';
  return location.instances > 0 ? 'ok' : 'idle';
}

const WORDS = {
  ok: 'all ready',
  busy: 'some not ready',
  warn: 'nodes silent',
  bad: 'silent',
  idle: 'no instances',
};

function keyEntry([tone, word]) {
  const point = svg('svg', {
    viewBox: '0 0 10 10',
    width: 9,
    height: 9,
    class: 'world-key',
    'aria-hidden': 'true',
  });
  point.append(svg('circle', { cx: 5, cy: 5, r: 5, class: tone }));
  return h('span', {}, point, ' ', word);
}

// `counted(location)` gives what a point stands for: how many there are, and how many of them are ready.
// `named(location)` says whether one that has no place on the map is named below it.
export function worldMap({ counted = (location) => location, named = () => true } = {}) {
  const points = svg('g');
  const picture = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', class: 'world' },
    svg('path', { d: LAND, class: 'land' }),
    points,
  );
  const tip = h('div', { class: 'tip', hidden: true, 'aria-hidden': 'true' });
  const list = h('span', { class: 'unplaced' });
  const more = h('span');
  const elsewhere = h('p', { class: 'elsewhere', hidden: true }, 'Without coordinates: ', list, ' ', more);
  const key = h('p', { class: 'map-key' }, Object.entries(WORDS).map(keyEntry));
  const element = h('div', { class: 'map' }, picture, tip, key, elsewhere);

  function show(location, point) {
    const shown = counted(location);
    const frame = element.getBoundingClientRect();
    const at = point.getBoundingClientRect();
    replace(
      tip,
      h('strong', {}, location.location),
      h('span', {}, `${count(shown.ready)} of ${plural(shown.instances, 'instance')} ready`),
      h('span', {}, WORDS[condition({ ...location, ...shown })]),
    );
    tip.hidden = false;
    const left = at.left + at.width / 2 - frame.left;
    tip.style.left = `${Math.min(Math.max(left, 80), frame.width - 80)}px`;
    tip.style.top = `${at.top - frame.top}px`;
    tip.classList.toggle('below', at.top - frame.top < 90);
  }

  function point(first) {
    const circle = svg('circle', {});
    const link = svg('a', { href: linkTo(first.location), tabindex: -1 }, circle);
    let location = first;
    link.addEventListener('pointerenter', () => show(location, circle));
    link.addEventListener('pointerleave', () => (tip.hidden = true));
    link.update = (now) => {
      location = now;
      const { x, y } = place(now.coordinates);
      const { instances } = counted(now);
      setAttribute(circle, 'cx', x.toFixed(1));
      setAttribute(circle, 'cy', y.toFixed(1));
      // The area, not the width, grows with the number.
      const radius = instances > 0 ? 4 + 13 * Math.sqrt(instances / link.most) : 3;
      setAttribute(circle, 'r', radius.toFixed(1));
      setAttribute(circle, 'class', condition({ ...now, ...counted(now) }));
    };
    return link;
  }

  function update(locations) {
    const placed = locations.filter((location) => location.coordinates);
    const most = Math.max(1, ...placed.map((location) => counted(location).instances));
    // Small ones lie above large ones, so that none is hidden.
    placed.sort((a, b) => counted(b).instances - counted(a).instances);
    keyed(
      points,
      placed,
      (location) => location.location,
      (location) => point(location),
      (link) => (link.most = most),
    );
    const silent = locations.filter((location) => !location.reachable).length;
    const name = `World map: ${plural(placed.length, 'location')}${silent ? `, ${silent} silent` : ''}. The list of locations says the same.`;
    setAttribute(picture, 'aria-label', name);
    const others = locations.filter((location) => !location.coordinates && named(location));
    elsewhere.hidden = others.length === 0;
    keyed(
      list,
      others.slice(0, UNPLACED),
      (location) => location.location,
      (location) => unplaced(location),
    );
    setText(more, others.length > UNPLACED ? `and ${plural(others.length - UNPLACED, 'more', 'more')}` : '');
  }

  function unplaced({ location }) {
    const numbers = h('span', { class: 'quiet' });
    const element = h('span', {}, h('a', { href: linkTo(location) }, location), ' ', numbers);
    element.update = (now) => {
      const { ready, instances } = counted(now);
      setText(numbers, `${count(ready)}/${count(instances)}`);
    };
    return element;
  }

  return { element, update };
}
