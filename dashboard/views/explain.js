// Why an instance is where it is, and how long its start took.

import { h, keyed, setText } from '../dom.js';
import { micros, plural } from '../format.js';
import { bar, cell, chip, emptyLine, row, table } from '../parts.js';

const SHOWN = 20;

function candidateRow(first) {
  const verdict = chip();
  const because = h('span');
  const line = row(first.name, cell('Verdict', verdict), cell('Because', because));
  line.update = (candidate) => {
    verdict.update(candidate.verdict);
    setText(because, candidate.why);
  };
  return line;
}

function verdictOf(decision, { name, score }) {
  if (decision.chosen === name) return 'chosen';
  return typeof score === 'number' ? 'possible' : 'refused';
}

// One decision of a scheduler with everything that it weighed.
export function decisionBlock(title) {
  const name = h('strong');
  const why = h('p');
  const list = table(`Candidates, ${title}`, ['Candidate', 'Verdict', 'Because']);
  const more = emptyLine();
  const element = h('div', { class: 'decision' }, h('h3', {}, title, ' ', name), why, list.element, more);
  element.update = (chosen, decision) => {
    setText(name, chosen);
    setText(why, `Because ${decision.why}.`);
    const candidates = decision.candidates.map((one) => ({ ...one, verdict: verdictOf(decision, one) }));
    keyed(list.body, candidates.slice(0, SHOWN), (one) => one.name, candidateRow);
    list.element.hidden = candidates.length === 0;
    const others = candidates.length - SHOWN;
    more.update(others > 0 ? `And ${plural(others, 'more')}: longshore explain.` : null);
  };
  return element;
}

function stageRow(first) {
  const level = bar('used');
  const time = h('span');
  const line = h('li', {}, h('span', { class: 'stage-name' }, first.name), level, time);
  line.update = (stage) => {
    level.update(stage.longest, stage.micros);
    setText(time, micros(stage.micros));
  };
  return line;
}

// The stages of the last start below each other, by how long they took.
export function stagesBlock() {
  const list = h('ol', { class: 'stages', 'aria-label': 'Stages of the last start' });
  const element = h('div', { hidden: true }, h('h3', {}, 'Last start'), list);
  element.update = (stages) => {
    const longest = Math.max(1, ...stages.map((stage) => stage.micros));
    element.hidden = stages.length === 0;
    keyed(
      list,
      stages.map((stage) => ({ ...stage, longest })),
      (stage) => stage.name,
      stageRow,
    );
  };
  return element;
}
