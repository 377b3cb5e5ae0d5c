// Elements made of data. Whatever comes from the API becomes text or the value of a plain attribute and
// never markup: there is no function here, or anywhere in the dashboard, that parses HTML, and the page's
// policy (`require-trusted-types-for 'script'`) makes the browser refuse it.

const SVG = 'http://www.w3.org/2000/svg';

// `props`: `class`, attributes by name (left out when null or false), `on` for listeners by event.
function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    } else if (value === true) {
      node.setAttribute(name, '');
    } else if (value !== null && value !== undefined && value !== false) {
      node.setAttribute(name, value);
    }
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) node.append(child);
  }
}

export function h(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

// Writes only what changed, so that a selection and what a reader is told of stay.
export function setText(node, text) {
  const wanted = String(text ?? '');
  if (node.textContent !== wanted) node.textContent = wanted;
}

export function setAttribute(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

// Puts other children in place of the present ones.
export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
}

// Makes the children of `parent` those of `items`, in their order, and keeps the element of a key: its
// focus, hover and selection outlive the update. `make` gives an element with a method `update(item)`;
// `prepare` is called with each element before that.
export function keyed(parent, items, keyOf, make, prepare = () => {}) {
  const before = parent.byKey ?? new Map();
  const now = new Map();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (now.has(key)) continue;
    const node = before.get(key) ?? make(item);
    prepare(node);
    node.update(item);
    now.set(key, node);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const [key, node] of before) if (!now.has(key)) node.remove();
  parent.byKey = now;
}
