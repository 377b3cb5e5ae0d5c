// What an instance uses of what it may.

import { h, setText } from '../dom.js';
import { bytes, cores, coresOf, count } from '../format.js';
import { gauge } from '../parts.js';

// Processor time spent from one look to the next, in thousandths of a
// core. Null at the first look, and when the counters
// began anew, as they do at each start.
function rate(before, now) {
  if (!before) return null;
  const spent = now.cpu_micros - before.cpu_micros;
  const time = now.at_micros - before.at_micros;
  return time > 0 && spent >= 0 ? (1000 * spent) / time : null;
}

export function usageBlock() {
  const cpu = gauge(cores, coresOf);
  const memory = gauge(bytes);
  const disk = gauge(bytes);
  const pids = gauge(count);
  const network = h('span');
  const named = (name, one) => h('div', { class: 'usage' }, h('span', { class: 'tile-name' }, name), one);
  const all = h(
    'div',
    { class: 'usages' },
    named('CPU', cpu),
    named('Memory', memory),
    named('Disk', disk),
    named('Processes', pids),
    named('Network', network),
  );
  const none = h(
    'p',
    { class: 'quiet', hidden: true },
    'Not known: it has no container now, or its node does not answer.',
  );
  let before = null;
  return {
    element: h('div', {}, all, none),
    update({ usage, limits }) {
      none.hidden = Boolean(usage);
      all.hidden = !usage;
      if (!usage) return;
      cpu.update(rate(before, usage), limits.cpu);
      memory.update(usage.memory, limits.memory);
      disk.update(usage.disk, limits.disk);
      pids.update(usage.pids, limits.pids);
      setText(
        network,
        usage.received === null ? '–' : `${bytes(usage.received)} in, ${bytes(usage.sent)} out`,
      );
      before = usage;
    },
  };
}
