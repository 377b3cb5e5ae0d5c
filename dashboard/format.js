// Values as people read them.

const BYTES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

export function bytes(count) {
  if (count === null || count === undefined) return '–';
  let value = count;
  let unit = 0;
  while (value >= 1024 && unit < BYTES.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const rounded = value >= 100 ? Math.round(value) : Math.round(value * 10) / 10;
  return `${rounded} ${BYTES[unit]}`;
}

// Thousandths of a core.
export function cores(milli) {
  if (milli === null || milli === undefined) return '–';
  const value = milli / 1000;
  const text = value >= 100 ? Math.round(value).toLocaleString('en') : String(Math.round(value * 100) / 100);
  return `${text} ${value === 1 ? 'core' : 'cores'}`;
}

// Thousandths of a core, used of those there are.
export function coresOf(used, whole) {
  return `${cores(used).split(' ')[0]} of ${cores(whole)}`;
}

export function count(value) {
  return (value ?? 0).toLocaleString('en');
}

export function plural(value, one, many = `${one}s`) {
  return `${count(value)} ${value === 1 ? one : many}`;
}

export function percent(part, whole) {
  return whole > 0 ? `${Math.round((100 * part) / whole)} %` : '–';
}

export function micros(value) {
  if (value < 1000) return `${value} µs`;
  if (value < 1_000_000) return `${(value / 1000).toFixed(value < 10_000 ? 1 : 0)} ms`;
  return `${(value / 1_000_000).toFixed(1)} s`;
}

// How long ago, in one unit.
export function ago(millis, now = Date.now()) {
  const seconds = Math.max(0, Math.round((now - millis) / 1000));
  if (seconds < 5) return 'just now';
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return plural(Math.round(seconds / 86_400), 'day') + ' ago';
}

const two = (value) => String(value).padStart(2, '0');

// By the clock of who looks.
export function clock(millis) {
  const at = new Date(millis);
  return `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
}

export function dateTime(millis) {
  const at = new Date(millis);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(millis)}`;
}

// A release as the CLI writes it.
export function release(number) {
  return `r${number}`;
}

// What programs write to colour a terminal, and other control characters, means nothing here.
export function plainText(text) {
  return text.replace(
    /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|[@-_])|[\u0000-\u0008\u000b-\u001f\u007f]/g,
    '',
  );
}
