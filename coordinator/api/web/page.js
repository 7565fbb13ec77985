// The status page: polls /status each second and shows it. Text from users and models is only ever set as text.

import {Chat} from './chat.js';
import * as format from './format.js';
import {Plot} from './plot.js';

const kPollMs = 1000;
const kStalledMs = 2000;  // several heartbeats are due by then
const kSamples = 300;  // as many as the server keeps
const kKeyName = 'plumbline-api-key';

const element = (id) => document.getElementById(id);
const headers = () => {
  const key = sessionStorage.getItem(kKeyName);
  return key ? {Authorization: 'Bearer ' + key} : {};
};

let status = null;
let history = null;  // columns by name
let next = 0;        // the first sample that is not here yet
let needsKey = false;

const plots = [
  new Plot(element('plot-tokens'), {
    title: 'Generated tokens per second', span: kSamples, least: 10, format: format.integer,
    series: [{column: 'generated_tokens_per_second'}]}),
  new Plot(element('plot-prompt'), {
    title: 'Prompt tokens per second', span: kSamples, least: 10, format: format.integer,
    series: [{column: 'prompt_tokens_per_second'}]}),
  new Plot(element('plot-sequences'), {
    title: 'Sequences', span: kSamples, least: 2, format: format.integer,
    series: [{name: 'running', column: 'running'}, {name: 'waiting', column: 'queued'}]}),
  new Plot(element('plot-first'), {
    title: 'To first token', span: kSamples, least: 10, format: format.milliseconds,
    series: [{name: 'mean', column: 'first_token_ms'}, {name: 'max', column: 'first_token_max_ms'}]}),
  new Plot(element('plot-each'), {
    title: 'Per token', span: kSamples, least: 1, format: format.milliseconds,
    series: [{name: 'mean', column: 'per_token_ms'}, {name: 'max', column: 'per_token_max_ms'}]}),
];

new Chat({log: element('chat-log'), form: element('chat-form'), input: element('chat-input'), send: element('chat-send'),
          clear: element('chat-clear')}, headers, () => status?.model.name ?? '');

// ---- tables ----

function cell(row, name, content, className = '') {
  const node = row.insertCell();
  node.dataset.name = name;
  node.className = className;
  const body = document.createElement('span');
  body.append(...[content].flat());
  node.append(body);
  return node;
}

function faint(text) {
  const node = document.createElement('span');
  node.className = 'of';
  node.textContent = text;
  return node;
}

function stateOf(word, kind) {
  const node = document.createElement('span');
  node.dataset.state = kind;
  node.textContent = word;
  return node;
}

// A part [from, to) of 1, as a bar.
function share(from, to) {
  const bar = document.createElement('div');
  bar.className = 'share';
  const part = document.createElement('i');
  part.style.left = 100 * from + '%';
  part.style.width = 100 * Math.min(1 - from, to - from) + '%';
  bar.append(part);
  return bar;
}

function showRanks(cluster) {
  const body = element('ranks').tBodies[0];
  const numLayers = Math.max(...cluster.ranks.map((rank) => rank.first_layer + rank.num_layers));
  const hosts = new Set(cluster.ranks.map((rank) => rank.host).filter((host) => host));
  element('ranks-summary').textContent =
      `${numLayers} layers over ${cluster.pp} ${cluster.pp === 1 ? 'stage' : 'stages'}, ` +
      `tensor parallel ${cluster.tp}, ${hosts.size} ${hosts.size === 1 ? 'host' : 'hosts'}`;
  body.replaceChildren(...cluster.ranks.map((rank) => {
    const row = document.createElement('tr');
    const last = rank.first_layer + rank.num_layers;
    cell(row, 'Rank', String(rank.rank));
    cell(row, 'Stage', String(rank.stage));
    cell(row, 'TP', [String(rank.tp_index), faint(' of ' + cluster.tp)]);
    cell(row, 'Layers', `${rank.first_layer}–${last - 1}`).append(share(rank.first_layer / numLayers, last / numLayers));
    cell(row, 'Host', rank.host ? [rank.host, faint(' ' + rank.pid)] : '–', 'text');
    cell(row, 'Memory', format.bytes(rank.memory_bytes), 'number');
    cell(row, 'Planned', format.bytes(rank.planned_bytes), 'number');
    cell(row, 'Steps', format.integer(rank.steps), 'number');
    const isLoading = rank.state === 'loading' && rank.load_fraction < 1;
    const word = isLoading ? `loading ${Math.round(100 * rank.load_fraction)} %` : rank.state;
    const state = [stateOf(word, {ready: 'good', loading: 'busy', lost: 'bad'}[rank.state])];
    if (cluster.stalled_ms >= kStalledMs) state.push(faint(' ' + rank.operation));
    cell(row, 'State', state, state.length > 1 ? 'text' : '');
    return row;
  }));
}

function showLastFault(cluster) {
  const fault = cluster.last_fault;
  element('last-fault').hidden = fault === null;
  if (fault === null) return;
  const named = fault.culprits.map((culprit) => `rank ${culprit.rank} (${culprit.host} ${culprit.pid}) ${culprit.operation}`);
  element('last-fault').textContent =
      `Last of ${cluster.faults} ${cluster.faults === 1 ? 'fault' : 'faults'}, ${format.time(fault.time_ms)}: ` +
      (named.length ? named.join('; ') : fault.reason);
}

function showRequests(requests) {
  element('requests').hidden = requests.count === 0;
  element('no-requests').hidden = requests.count > 0;
  const hidden = requests.count - requests.oldest.length;
  element('requests-summary').textContent =
      requests.count === 0 ? '' : `${format.integer(requests.count)} under way` + (hidden ? `, the oldest ${requests.oldest.length} shown` : '');
  element('requests').tBodies[0].replaceChildren(...requests.oldest.map((request) => {
    const row = document.createElement('tr');
    cell(row, 'Id', request.id, 'text');
    cell(row, 'Key', request.key || '–', 'text');
    cell(row, 'Model', request.model, 'text');
    cell(row, 'In', format.integer(request.prompt_tokens), 'number');
    cell(row, 'Out', format.integer(request.generated_tokens), 'number');
    cell(row, 'Age', format.age(request.age_ms), 'number');
    cell(row, 'State', stateOf(request.state, request.state === 'generating' ? 'good' : 'busy'));
    return row;
  }));
}

function showCaches(engine, prefix) {
  const entry = (name, value, rest, bar) => {
    const node = document.createElement('div');
    const term = document.createElement('dt');
    term.textContent = name;
    const detail = document.createElement('dd');
    detail.append(value, faint(rest));
    if (bar) detail.append(bar);
    node.append(term, detail);
    return node;
  };
  const part = (used, all) => share(0, all > 0 ? used / all : 0);
  const entries = [
    entry('KV blocks in use', format.integer(engine.kv_blocks_used), ' of ' + format.integer(engine.kv_blocks),
          part(engine.kv_blocks_used, engine.kv_blocks)),
  ];
  if (engine.state_slots > 0) {
    entries.push(entry('State slots in use', format.integer(engine.state_slots_used), ' of ' + format.integer(engine.state_slots),
                       part(engine.state_slots_used, engine.state_slots)));
  }
  entries.push(
      entry('Prefix cache hits', format.percent(prefix.hit_tokens, prefix.query_tokens),
            ` of ${format.integer(prefix.query_tokens)} tokens`, part(prefix.hit_tokens, prefix.query_tokens)),
      entry('Prefix cache holds', format.integer(prefix.blocks), ' blocks' + (engine.state_slots > 0 ? `, ${prefix.states} states` : ''),
            part(prefix.blocks, engine.kv_blocks)));
  element('caches').replaceChildren(...entries);
}

function showState(word, kind, facts) {
  element('state').textContent = word;
  element('state').dataset.state = kind;
  element('facts').textContent = facts;
}

function show() {
  const {model, cluster} = status;
  element('model').textContent = model.name;
  document.title = model.name + ' · Plumbline';
  const facts = [];
  if (cluster) facts.push(`TP ${cluster.tp} × PP ${cluster.pp}`, cluster.arithmetic || 'no arithmetic yet', `epoch ${cluster.epoch}`);
  facts.push('up ' + format.age(status.now_ms - status.started_ms));
  if (status.draining) showState('draining', 'busy', facts.join(' · '));
  else if (status.ready) showState('ready', 'good', facts.join(' · '));
  else showState('not ready: ' + status.not_ready_because, 'bad', facts.join(' · '));
  if (cluster) {
    showRanks(cluster);
    showLastFault(cluster);
  }
  showRequests(status.requests);
  showCaches(status.engine, status.prefix_cache);
  for (const plot of plots) plot.update(history);
}

// ---- polling ----

function take(answer) {
  const {samples} = answer.history;
  if (history === null || status.started_ms !== answer.started_ms) {
    history = samples;
  } else {
    for (const name in samples) history[name] = [...history[name], ...samples[name]].slice(-kSamples);
  }
  next = answer.history.next;
  status = answer;
}

function askForKey(message) {
  needsKey = true;
  showState('needs a key', 'busy', '');
  element('key-form').hidden = false;
  element('key-error').textContent = sessionStorage.getItem(kKeyName) ? message : '';
  element('key').focus();
}

async function poll() {
  try {
    const answer = await fetch('/status?since=' + next, {headers: headers(), cache: 'no-store'});
    const body = await answer.json();
    if (answer.status === 401) return askForKey(body.error.message);
    if (!answer.ok) throw new Error(body.error.message);
    // After a restart the numbers begin again: what was kept is of another life.
    if (status !== null && status.started_ms !== body.started_ms && next !== 0) {
      next = 0;
      return poll();
    }
    take(body);
    show();
  } catch (error) {
    showState('no answer', 'bad', error.message);
  }
}

async function run() {
  if (!document.hidden && !needsKey) await poll();
  setTimeout(run, kPollMs);
}

element('key-form').addEventListener('submit', (event) => {
  event.preventDefault();
  sessionStorage.setItem(kKeyName, element('key').value.trim());
  element('key').value = '';
  element('key-form').hidden = true;
  needsKey = false;
});

run();
