/* The page that a person asks at. The server draws; here its pieces are put in their places.

   Whatever a person, a file or a model wrote becomes text by `textContent`. Markup comes from the
   server's templates alone, which escape all they print; `become` puts it in, piece by piece. */
"use strict";

const HISTORY = "cot-engine.history", KEY = "cot-engine.key", MOST = 30, THUMB = 320;
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const made = (name, more = {}, ...children) => {
  const element = Object.assign(document.createElement(name), more);
  element.append(...children);
  return element;
};
const spoken = text => { one("#spoken").textContent = text; };

// --- the server ----------------------------------------------------------------------------------

class Failure extends Error {
  constructor(message, status, wait) { super(message); this.status = status; this.wait = wait; }
}

/* What the server answers; asks for a key where one is wanted. Throws Failure. */
async function call(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY), headers = { ...options.headers };
    if (key) headers.Authorization = `Bearer ${key}`;
    let reply;
    try {
      reply = await fetch(path, { ...options, headers });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Failure("The server cannot be reached. Is it still running?", 0);
    }
    if (reply.ok) return reply;
    if (reply.status === 401 && await key_given()) continue;
    const body = await reply.json().catch(() => null);
    const message = body?.error?.message ?? `The server answered with status ${reply.status}.`;
    throw new Failure(message, reply.status, Number(reply.headers.get("Retry-After")) || 0);
  }
}

let asking = null;
function key_given() {
  asking ??= new Promise(resolve => {
    const dialog = one("#key"), text = one("#key-text");
    text.value = "";
    dialog.addEventListener("close", () => {
      asking = null;
      const use = dialog.returnValue === "use" && text.value.trim();
      if (use) sessionStorage.setItem(KEY, use);
      resolve(Boolean(use));
    }, { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}

/* Server-sent events, as [name, value], by fetch: an EventSource sends no key. */
async function* heard(path, signal) {
  const reply = await call(path, { signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read().catch(error => {
      throw error.name === "AbortError" ? error : new Failure("The connection broke.", 0);
    });
    if (done) return;
    left += value;
    for (let end; (end = left.indexOf("\n\n")) >= 0; left = left.slice(end + 2)) {
      let name = "", data = "";
      for (const line of left.slice(0, end).split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        if (line.startsWith("data: ")) data = line.slice(6);
      }
      if (data) yield [name, JSON.parse(data)];
    }
  }
}

// --- putting pieces in their places --------------------------------------------------------------

const drawing = window.trustedTypes
  ? trustedTypes.createPolicy("drawing", { createHTML: markup => markup })
  : { createHTML: markup => markup };

/* Markup of the server's as elements of a document in which nothing runs and nothing is fetched. */
const elements = markup =>
  new DOMParser().parseFromString(drawing.createHTML(markup), "text/html").body;

/* Make `from` what `to` is, keeping what is alike: what is open stays open, and the focus where it
   is. Elements with an id are known by it, wherever they have gone. */
function become(from, to) {
  if (from.nodeName !== to.nodeName) return from.replaceWith(document.importNode(to, true));
  if (from.nodeType !== Node.ELEMENT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return undefined;
  }
  for (const { name } of [...from.attributes]) {
    if (!to.hasAttribute(name) && name !== "open") from.removeAttribute(name);
  }
  for (const { name, value } of to.attributes) {
    if (from.getAttribute(name) !== value) from.setAttribute(name, value);
  }
  return fill(from, to);
}

function fill(from, to) {
  const known = new Map([...from.children].filter(e => e.id).map(e => [e.id, e]));
  let at = from.firstChild;
  for (const want of to.childNodes) {
    let have = want.id ? known.get(want.id) : null;
    if (!want.id && at && !at.id && at.nodeName === want.nodeName) have = at;
    if (!have) { from.insertBefore(document.importNode(want, true), at); continue; }
    if (have === at) at = at.nextSibling; else from.insertBefore(have, at);
    become(have, want);
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
}

/* Do what changes the page, and give the focus back if its element was only moved. */
function keeping_focus(act) {
  const active = document.activeElement;
  act();
  const lost = active !== document.activeElement && active?.isConnected;
  if (lost) active.focus({ preventScroll: true });
}

// --- a search ------------------------------------------------------------------------------------

class Run {
  /* One search: `told` is what the history knows of it, {id, strategy, state, answer}. */
  constructor(told, label, changed) {
    this.told = told;
    this.changed = changed;
    this.element = one("#run").content.firstElementChild.cloneNode(true);
    this.thinking = one(".thinking", this.element);
    this.columns = one(".columns", this.element);
    this.search = one(".search", this.element);
    this.away = new AbortController();
    this.phase = "";
    this.touched = false;
    one(".kicker", this.element).textContent = told.strategy;
    this.search.setAttribute("aria-label", `The search by ${label}, from left to right`);
    this.element.setAttribute("aria-label", label);
    this.thinking.open = told.state !== "answered";
    for (const kind of ["pointerdown", "keydown"]) {
      this.thinking.addEventListener(kind, () => { this.touched = true; });
    }
    one(".stop", this.element).addEventListener("click", () => this.stop());
    one(".share", this.element).addEventListener("click", event => this.share(event));
    this.say("Sending");
  }

  get path() { return `ui/searches/${this.told.id}`; }

  say(text) { one(".said", this.element).textContent = text; }

  trouble(message) { complain(one(".failure", this.element), message); }

  /* Follow the search to its end; where the connection breaks, again from its beginning. */
  async follow() {
    for (let tries = 0; tries < 5; tries += 1) {
      try {
        for await (const [name, value] of heard(`${this.path}/events`, this.away.signal)) {
          if (name === "drawing") { this.draw(value); tries = 0; }
          if (name === "end") return this.end(value);
        }
      } catch (error) {
        if (error.name === "AbortError") return undefined;
        if (!(error instanceof Failure)) throw error;
        if (error.status) return this.lost(error);
      }
      this.say("The connection broke; trying again");
      await new Promise(resolve => { setTimeout(resolve, 500 * 2 ** tries); });
    }
    return this.lost(new Failure("The server cannot be reached. Is it still running?", 0));
  }

  draw(news) {
    const at_end = this.search.scrollLeft + this.search.clientWidth > this.search.scrollWidth - 8;
    keeping_focus(() => {
      for (const [name, markup] of Object.entries(news.slots ?? {})) {
        const place = one(`[data-slot="${name}"]`, this.element);
        if (place) fill(place, elements(markup));
      }
      for (const [at, markup] of Object.entries(news.columns ?? {})) {
        const column = elements(markup).firstElementChild, have = this.columns.children[at];
        if (have) become(have, column); else this.columns.append(document.importNode(column, true));
      }
      for (const [id, markup] of Object.entries(news.cards ?? {})) {
        const have = document.getElementById(`${this.told.id}-${id}`);
        if (have) become(have, elements(markup).firstElementChild);
      }
      while (news.count !== undefined && this.columns.children.length > news.count) {
        this.columns.lastElementChild.remove();
      }
    });
    if (at_end && (news.columns || news.count)) this.search.scrollLeft = this.search.scrollWidth;
    if (news.status !== undefined) {
      this.say(news.status);
      const phase = news.status.split(":")[0];
      if (phase !== this.phase) spoken(phase);
      this.phase = phase;
    }
  }

  end({ state, answer, error }) {
    one(".now", this.element).hidden = true;
    one(".actions", this.element).hidden = false;
    one(".share", this.element).href = `${this.path}/page.html`;
    if (state === "answered") {
      Object.assign(this.told, { state, answer });
      if (!this.touched && !this.thinking.contains(document.activeElement)) {
        this.search.scrollLeft = 0;
        this.thinking.open = false;
      }
      spoken(`Answer: ${answer}`);
    } else {
      this.told.state = error?.code === "cancelled" ? "stopped" : "failed";
      this.thinking.hidden = !this.columns.children.length;
      if (this.told.state === "stopped") spoken("Stopped");
      else this.trouble(error?.message ?? "It failed.");
      one(".outcome", this.element).hidden = this.told.state !== "stopped"; // it says the same
    }
    this.changed();
  }

  /* The server has it no more, or will not show it. */
  lost(failure) {
    one(".now", this.element).hidden = true;
    this.thinking.hidden = true;
    all(".fold", this.element).forEach(fold => { fold.hidden = true; });
    if (this.told.answer !== undefined) {
      one(".outcome", this.element).replaceChildren(made("p", { className: "answer" },
        made("span", { textContent: "Answer" }),
        made("strong", { textContent: this.told.answer, dir: "auto" })));
    }
    this.trouble(failure.message);
    if (this.told.state === "running") { this.told.state = "lost"; this.changed(); }
  }

  async stop() {
    this.say("Stopping");
    try { await call(`${this.path}/cancel`, { method: "POST" }); }
    catch (failure) { this.trouble(failure.message); }
  }

  /* A link does it, but for a key, which no link sends. */
  async share(event) {
    if (!sessionStorage.getItem(KEY)) return;
    event.preventDefault();
    try {
      const reply = await call(`${this.path}/page.html`);
      const address = URL.createObjectURL(await reply.blob());
      made("a", { href: address, download: `${this.told.id}.html` }).click();
      setTimeout(() => URL.revokeObjectURL(address), 10_000);
    } catch (failure) { this.trouble(failure.message); }
  }
}

/* Say what went wrong: the first sentence, then the rest. */
function complain(place, message) {
  const end = message.search(/\. (?=\S)/) + 1;
  const [first, rest] = end ? [message.slice(0, end), message.slice(end + 1)] : [message, ""];
  const said = [made("strong", { textContent: first }), made("span", { textContent: rest })];
  place.replaceChildren(...said);
  place.hidden = false;
}

// --- pictures ------------------------------------------------------------------------------------

const limits = one("main").dataset;
let pictures = []; // {file, thumb, said}

async function add(files) {
  const room = Number(limits.mostPictures);
  trouble();
  for (const file of files) {
    const size = pictures.reduce((sum, each) => sum + each.file.size, file.size);
    if (!file.type.startsWith("image/")) {
      trouble(`“${file.name}” is no picture. Choose a PNG, a JPEG or another image file.`);
    } else if (size * 4 / 3 > Number(limits.mostBytes)) { // base64 takes four bytes for three
      const most = Math.floor(limits.mostBytes * 0.75 / 1e6);
      trouble(`“${file.name}” is too large. All pictures together may have ${most} MB.`);
    } else {
      const picture = { file, ...await thumbnail(file) };
      pictures = room > 1 ? [...pictures, picture].slice(-room) : [picture];
    }
  }
  show_pictures();
}

/* A small copy for this page and its history; none of what the browser cannot read. */
async function thumbnail(file) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
    const [width, height] = [bitmap.width, bitmap.height].map(side => Math.max(1, side * scale));
    const canvas = made("canvas", { width, height });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const size = `${bitmap.width} × ${bitmap.height} pixels`;
    const small = Math.max(bitmap.width, bitmap.height) <= 128;
    return { thumb: canvas.toDataURL("image/jpeg", 0.85), size, small };
  } catch { return { thumb: "", size: "", small: false }; }
}

function show_pictures() {
  one("#pictures").replaceChildren(...pictures.map(picture => {
    const name = picture.file.name || "picture";
    const remove = made("button", { type: "button", className: "quiet", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${name}`);
    remove.addEventListener("click", () => {
      pictures = pictures.filter(each => each !== picture);
      show_pictures();
      one("#choose").focus();
    });
    const label = made("span", { className: "name", textContent: said_of(picture, name) });
    return made("li", {}, ...(picture.thumb ? [image(picture, name)] : []), label, remove);
  }));
  const more = Number(limits.mostPictures) > 1 ? "More of them:" : "Another one instead:";
  one(".invite").textContent = pictures.length ? more : "Drop a picture here, paste one, or";
}

const said_of = ({ size }, name) => [name, size].filter(Boolean).join(", ");
const image = (picture, name) => made("img", { src: picture.thumb, alt: said_of(picture, name) });

const base64 = file => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  const lost = `“${file.name}” cannot be read any more. Choose it again.`;
  reader.onerror = () => reject(new Failure(lost, 0));
  reader.readAsDataURL(file);
});

async function shoot() {
  if (!navigator.mediaDevices?.getUserMedia) { one("#snap").click(); return; }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch { trouble("No camera can be used. Allow it for this page, or choose a file."); return; }
  const view = one("#view"), dialog = one("#camera");
  view.srcObject = stream;
  dialog.addEventListener("close", () => {
    stream.getTracks().forEach(track => track.stop());
    view.srcObject = null;
  }, { once: true });
  dialog.showModal();
}

function take() {
  const view = one("#view");
  if (!view.videoWidth) return;
  const canvas = made("canvas", { width: view.videoWidth, height: view.videoHeight });
  canvas.getContext("2d").drawImage(view, 0, 0);
  canvas.toBlob(blob => {
    one("#camera").close();
    add([new File([blob], "camera.png", { type: "image/png" })]);
  }, "image/png");
}

// --- asking --------------------------------------------------------------------------------------

const trouble = (message = "") => {
  const place = one("#trouble");
  place.className = message ? "failure" : "";
  if (message) complain(place, message); else place.replaceChildren();
};

/* What one side of the form says: a strategy with its parameters. Throws Failure. */
function strategy_of(side) {
  const strategy = one("[name=strategy]", side).value, parameters = {};
  const inputs = all(".inputs", side).find(each => each.dataset.of === strategy);
  for (const input of all("input, select", inputs)) {
    if (input.type === "checkbox") parameters[input.name] = input.checked;
    else if (input.type !== "number") parameters[input.name] = input.value;
    else if (input.value !== "") parameters[input.name] = Number(input.value);
    else if (input.validity.badInput) {
      throw new Failure(`${input.name} is no number. Write one, or leave it empty.`, 0);
    }
  }
  return { strategy, parameters };
}

function questions_of(form) {
  const sides = one("#compare").checked ? ["#side-a", "#side-b"] : ["#side-a"];
  const common = { judge: one("#judge").value, seed: Number(one("#seed").value) || 0 };
  const amount = one("#budget").value.trim();
  if (amount) common.budget = `${amount} ${one("#unit").value}`;
  return sides.map(each => ({ ...strategy_of(one(each, form)), ...common }));
}

const label_of = ({ strategy, parameters }) =>
  parameters.n ? `${strategy}, ${parameters.n} candidates` : strategy;

async function ask(event) {
  event.preventDefault();
  const question = one("#question").value;
  trouble();
  if (!question.trim()) {
    trouble("The question is empty. Write what you want to know.");
    one("#question").focus();
    return;
  }
  const send = one("#send"), runs = [];
  send.disabled = true;
  try {
    const read = async ({ file }) => ({ name: file.name, data: await base64(file) });
    const given = await Promise.all(pictures.map(read));
    for (const each of questions_of(event.target)) {
      const body = JSON.stringify({ question, pictures: given, ...each });
      const headers = { "Content-Type": "application/json" };
      const reply = await call("ui/searches", { method: "POST", body, headers });
      runs.push({ id: (await reply.json()).id, strategy: label_of(each), state: "running" });
    }
    const thumbs = pictures.map(({ file, ...small }) => ({ name: file.name, ...small }));
    const exchange = { at: Date.now(), question, pictures: thumbs, runs };
    remember(exchange);
    open(exchange);
  } catch (failure) {
    const wait = failure.wait ? ` Try again in ${failure.wait} s.` : "";
    trouble(`${failure.message}${wait}`);
    for (const { id } of runs) { // both or none
      call(`ui/searches/${id}/cancel`, { method: "POST" }).catch(() => {});
    }
    if (!(failure instanceof Failure)) throw failure;
  } finally { send.disabled = false; }
}

// --- what was asked ------------------------------------------------------------------------------

const opened = new Map(); // exchange.at -> its runs, followed to their ends

function open(exchange) {
  if (!opened.has(exchange.at)) {
    const alike = new Set(exchange.runs.map(each => each.strategy)).size < exchange.runs.length;
    const runs = exchange.runs.map((told, k) => {
      const label = alike ? `${told.strategy} (${k + 1})` : told.strategy;
      return new Run(told, label, keep);
    });
    opened.set(exchange.at, runs);
    runs.forEach(run => run.follow());
  }
  const runs = opened.get(exchange.at);
  one("#empty").hidden = true;
  one("#exchange").hidden = false;
  one("#asked").textContent = exchange.question;
  document.title = `${exchange.question.slice(0, 60)} · cot-engine`;
  one("#asked-pictures").replaceChildren(...exchange.pictures.filter(each => each.thumb).map(each =>
    Object.assign(image(each, each.name || "picture"), { className: each.small ? "small" : "" })));
  one("#asked-pictures").hidden = !exchange.pictures.some(each => each.thumb);
  one("#runs").classList.toggle("two", runs.length > 1);
  one("#runs").replaceChildren(...runs.map(run => run.element));
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  one("#exchange").scrollIntoView({ block: "start", behavior: still ? "auto" : "smooth" });
}

let history = [];

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(HISTORY) ?? "[]");
    const whole = each => Array.isArray(each?.runs) && Array.isArray(each?.pictures);
    history = Array.isArray(kept) ? kept.filter(whole) : [];
  } catch { history = []; }
  for (const picture of history.flatMap(each => each.pictures)) {
    if (!/^data:image\/jpeg;base64,[A-Za-z0-9+/=]+$/.test(picture.thumb)) picture.thumb = "";
  }
}

function remember(exchange) {
  history = [exchange, ...history].slice(0, MOST);
  keep();
}

/* Write it down, as much of it as the browser has room for, and show it. */
function keep() {
  for (let most = history.length; most >= 0; most -= 5) {
    try {
      localStorage.setItem(HISTORY, JSON.stringify(history.slice(0, most)));
      break;
    } catch { /* less of it */ }
  }
  const list = one("#history");
  keeping_focus(() => list.replaceChildren(...history.map(entry)));
  one("#past").hidden = history.length === 0;
}

function entry(exchange) {
  const first = exchange.pictures.find(each => each.thumb);
  const thumb = made(first ? "img" : "span", { className: "thumb" });
  if (first) Object.assign(thumb, { src: first.thumb, alt: "" });
  const said = { running: "still running", stopped: "stopped", failed: "failed" };
  const found = made("span", { className: "found-then" });
  exchange.runs.forEach((run, k) => {
    const answer = made(run.state === "answered" ? "b" : "span");
    const found_then = run.answer === "" ? "empty" : run.answer;
    answer.textContent = found_then ?? said[run.state] ?? "not finished";
    found.append(k ? " · " : "", answer, ` by ${run.strategy}`);
  });
  const button = made("button", { type: "button", className: "open" }, thumb,
    made("span", { className: "asked-then", textContent: exchange.question }), found);
  button.addEventListener("click", () => {
    open(exchange);
    one("#asked").focus({ preventScroll: true });
  });
  const away = made("button", { type: "button", className: "away quiet", textContent: "×" });
  away.setAttribute("aria-label", `Forget “${String(exchange.question).slice(0, 60)}”`);
  away.addEventListener("click", () => {
    history = history.filter(each => each !== exchange);
    keep();
    (one("#history .away") ?? one("#question")).focus();
  });
  return made("li", {}, button, away);
}

// --- the form ------------------------------------------------------------------------------------

function choose_strategy(side) {
  const name = one("[name=strategy]", side).value;
  for (const inputs of all(".inputs", side)) inputs.hidden = inputs.dataset.of !== name;
}

function start() {
  const form = one("#ask"), files = one("#files"), question = one("#question"), drop = one("#drop");
  form.addEventListener("submit", ask);
  question.addEventListener("keydown", event => {
    const touched = matchMedia("(pointer: coarse)").matches; // a phone has no Shift + Enter
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || touched) return;
    event.preventDefault();
    form.requestSubmit();
  });
  one("#choose").addEventListener("click", () => files.click());
  one("#shoot").addEventListener("click", shoot);
  one("#take").addEventListener("click", take);
  one("#away").addEventListener("click", () => one("#camera").close());
  for (const input of [files, one("#snap")]) {
    input.addEventListener("change", () => { add([...input.files]); input.value = ""; });
  }
  document.addEventListener("paste", event => {
    const pasted = [...event.clipboardData?.files ?? []];
    if (pasted.length) { event.preventDefault(); add(pasted); }
  });
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, event => {
      if (![...event.dataTransfer?.types ?? []].includes("Files")) return;
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") add([...event.dataTransfer.files]);
    });
  }
  for (const side of all(".side").filter(each => one("[name=strategy]", each))) {
    one("[name=strategy]", side).addEventListener("change", () => choose_strategy(side));
    choose_strategy(side); // a browser may have kept what was chosen before
  }
  const compare = one("#compare");
  const both = () => { one("#side-b").hidden = one("#side-b").disabled = !compare.checked; };
  compare.addEventListener("change", both);
  both();
  one("#key form").addEventListener("submit", event => {
    event.preventDefault();
    one("#key").close(event.submitter?.value ?? "use");
  });
  one("#forget").addEventListener("click", () => { history = []; keep(); question.focus(); });
  load();
  keep();
}

start();
