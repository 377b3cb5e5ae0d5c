// The public API, as any client has it: the token goes along in a header, never in an address, so that
// neither a history nor a log nor another site gets to see it. Event streams are read from the body of a
// `fetch` for the same reason: `EventSource` cannot send headers.

const KEPT = 'longshore-token';
// Streams send something every five seconds; after three times nothing the other end is lost.
const SILENCE = 16_000;
const RETRY = { first: 500, most: 15_000 };

// An answer that is an error. `status` is 0 when there was no answer.
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

export const session = {
  token: sessionStorage.getItem(KEPT),
  keep(token) {
    this.token = token;
    sessionStorage.setItem(KEPT, token);
  },
  forget() {
    this.token = null;
    sessionStorage.removeItem(KEPT);
  },
};

// What is called when the token is not known any more.
let onEnd = () => {};
export function whenSessionEnds(listener) {
  onEnd = listener;
}

async function request(path, { signal, accept = 'application/json', headers = {} } = {}) {
  const token = session.token;
  let answer;
  try {
    answer = await fetch(`/v1${path}`, {
      headers: { ...headers, accept, authorization: `Bearer ${token}` },
      cache: 'no-store',
      credentials: 'omit',
      redirect: 'error',
      referrerPolicy: 'no-referrer',
      signal,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Problem(0, 'The server does not answer.');
  }
  if (answer.ok) return answer;
  let detail = `The server answered ${answer.status}.`;
  try {
    const problem = await answer.json();
    detail = problem.detail ?? problem.title ?? detail;
  } catch {
    // Not a problem document; the status has to do.
  }
  if (answer.status === 401 && token === session.token) onEnd(detail);
  throw new Problem(answer.status, detail);
}

export async function get(path, options) {
  const answer = await request(path, options);
  return answer.json();
}

// Part of a path.
export const part = encodeURIComponent;

// The lines of a body as they come. Ends with the body; throws when nothing came for too long.
async function* linesOf(answer, abort) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    const timer = setTimeout(() => abort.abort(), SILENCE);
    let piece;
    try {
      piece = await reader.read();
    } finally {
      clearTimeout(timer);
    }
    if (piece.done) return;
    const lines = (rest + piece.value).split('\n');
    rest = lines.pop();
    yield* lines;
  }
}

// Each JSON line of an answer.
async function* jsonLines(answer, abort) {
  for await (const line of linesOf(answer, abort)) {
    if (line.trim() !== '') yield { kind: 'line', data: JSON.parse(line) };
  }
}

// Each server-sent event of an answer.
async function* serverEvents(answer, abort) {
  let event = { kind: 'message', id: null, data: [] };
  for await (const raw of linesOf(answer, abort)) {
    const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
    if (line === '') {
      if (event.data.length > 0) yield { ...event, data: JSON.parse(event.data.join('\n')) };
      event = { kind: 'message', id: event.id, data: [] };
      continue;
    }
    const colon = line.indexOf(':');
    if (colon === 0) continue; // A comment: the other end is there.
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') event.data.push(value);
    if (name === 'event') event.kind = value;
    if (name === 'id') event.id = value;
  }
}

function pause(millis, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, millis);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}

// A fault of ours in handling a message is told in the console; it is no reason to connect again.
function handOver(onData, message) {
  try {
    onData(message.data, message.kind);
  } catch (error) {
    reportError(error);
  }
}

// Follows a stream until `signal`, and again after each break. `onData(data)` for each message;
// `onState(connected, problem)` when it begins and when it broke. With `once` it ends with the stream.
export async function follow(path, { accept, signal, onData, onState = () => {}, once = false }) {
  let wait = RETRY.first;
  let lastId = null;
  while (!signal.aborted) {
    const abort = new AbortController();
    const stop = () => abort.abort();
    signal.addEventListener('abort', stop, { once: true });
    let problem = null;
    try {
      const headers = lastId === null ? {} : { 'last-event-id': lastId };
      const answer = await request(path, { signal: abort.signal, accept, headers });
      onState(true, null);
      const read = accept === 'text/event-stream' ? serverEvents : jsonLines;
      for await (const message of read(answer, abort)) {
        wait = RETRY.first;
        lastId = message.id ?? lastId;
        handOver(onData, message);
      }
    } catch (error) {
      problem = error;
    } finally {
      signal.removeEventListener('abort', stop);
    }
    if (signal.aborted) return;
    onState(false, problem);
    const isFinal = problem instanceof Problem && problem.status >= 400 && problem.status < 500;
    if (isFinal || (once && problem === null)) return;
    await pause(wait, signal);
    wait = Math.min(wait * 2, RETRY.most);
  }
}
