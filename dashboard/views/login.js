// Where a token is asked for.

import { h, setText } from '../dom.js';

// `enter(token)` says what is wrong with it, or nothing. `message` is why one is asked for again.
export function loginView({ enter, message = '' }) {
  const problem = h('p', { class: 'notice bad', role: 'alert', hidden: !message }, message);
  const input = h('input', {
    id: 'token',
    type: 'password',
    autocomplete: 'off',
    autocapitalize: 'off',
    spellcheck: 'false',
    required: true,
    'aria-describedby': 'token-help',
  });
  const button = h('button', { type: 'submit', class: 'primary' }, 'Log in');

  function say(text) {
    problem.hidden = false;
    setText(problem, text);
    input.focus();
    input.select();
  }

  async function submit(event) {
    event.preventDefault();
    const token = input.value.trim();
    if (!/^[\x21-\x7e]+$/.test(token)) {
      say('A token is one word, such as lsh_…');
      return;
    }
    button.disabled = true;
    problem.hidden = true;
    const wrong = await enter(token);
    button.disabled = false;
    if (wrong) say(wrong);
  }

  const help = h(
    'p',
    { id: 'token-help', class: 'quiet' },
    'One that can only look: ',
    h('code', {}, 'longshore token create ui --role read'),
    '. The dashboard changes nothing, whatever the token may.',
  );
  const element = h(
    'div',
    { class: 'login' },
    h('img', { src: new URL('../icon.svg', import.meta.url).pathname, alt: '', width: '40', height: '40' }),
    h('h1', { tabindex: '-1' }, 'Longshore'),
    h('p', {}, 'Log in with a token. It stays in this tab and is forgotten when you close it.'),
    h('form', { on: { submit } }, h('label', { for: 'token' }, 'Token'), input, problem, button, help),
  );
  return { title: 'Log in', element, focus: () => input.focus(), update() {} };
}
