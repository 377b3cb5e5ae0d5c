// What was changed, by whom and from where.

import { h, keyed, setAttribute, setText } from '../dom.js';
import { ago, dateTime } from '../format.js';
import { emptyLine, filterField, links, pageHead } from '../parts.js';

const OF_APPS = ['deploy', 'scale', 'rollback', 'promote'];

// Where an event leads, when it is about an app of the project that is looked at.
function target(event, live) {
  if (event.project !== live.project || !OF_APPS.includes(event.what)) return null;
  return links.app(event.subject.split(' ')[0]);
}

function line(event, live) {
  const time = h('time', { datetime: new Date(event.at).toISOString(), title: dateTime(event.at) });
  const href = target(event, live);
  const subject = href ? h('a', { href, 'data-row': '' }, event.subject) : h('span', {}, event.subject);
  const by = event.token ? `by ${event.token}` : 'by the platform';
  const project = event.project ? ` in ${event.project}` : '';
  const where = event.from ? ` from ${event.from}` : '';
  const element = h(
    'li',
    {},
    h('span', { class: 'event-what' }, h('strong', {}, event.what), ' ', subject),
    h('span', { class: 'quiet' }, time, ` ${by}${project}${where}`),
  );
  element.update = () => setText(time, ago(event.at));
  return element;
}

// With `announce`, readers are told of new ones.
export function eventList({ label, announce = false }) {
  const element = h('ol', { class: 'events', 'aria-label': label });
  return {
    element,
    update(events, live) {
      keyed(
        element,
        events,
        (event) => event.key,
        (event) => line(event, live),
      );
      // From now on: what was there when the page opened is no news.
      if (announce && events.length > 0) setAttribute(element, 'aria-live', 'polite');
    },
  };
}

export function eventsView() {
  let wanted = '';
  let last = null;
  const list = eventList({ label: 'Events, the newest first' });
  const none = emptyLine();
  const filter = filterField('Filter events', (text) => {
    wanted = text;
    update(last);
  });

  function update(live) {
    last = live;
    const text = ({ what, subject, token, project }) =>
      `${what} ${subject} ${token ?? ''} ${project ?? ''}`.toLowerCase();
    const shown = (live.events ?? []).filter((event) => text(event).includes(wanted));
    list.update(shown.toReversed(), live);
    let empty = null;
    if (!live.events) empty = 'Loading …';
    else if (shown.length === 0) empty = wanted ? 'No event matches.' : 'Nothing was changed yet.';
    none.update(empty);
  }
  return {
    title: 'Events',
    needs: ['events'],
    element: h(
      'div',
      { class: 'page' },
      pageHead('Events', [], filter),
      h('section', { class: 'panel', 'aria-label': 'Events' }, list.element, none),
    ),
    filter,
    up: links.overview(),
    update,
  };
}
