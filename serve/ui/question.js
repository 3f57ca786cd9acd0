// What is being asked, kept in the address after its #: a link or the back button brings it back, and no server sees it.

export const question = { user: "", history: [], like: "", filter: {}, k: 10, diversity: 0, seen: false };

const RECENT = "recsys-users";

/** The request that the question stands for: where it goes, and its body. */
export function request() {
  const body = { k: question.k };
  if (Object.keys(question.filter).length) body.filter = question.filter;
  if (question.diversity) body.diversity = question.diversity;
  if (question.like) return ["v1/similar", { ...body, items: [question.like] }];
  return ["v1/recommendations", { ...body, ...whom(), explain: true }];
}

/** Of a request for recommendations, what says for whom. */
export function whom() {
  const said = { include_seen: question.seen };
  if (question.user) said.user_id = question.user;
  if (question.history.length) said.history = question.history;
  return said;
}

export function toAddress() {
  const said = new URLSearchParams();
  if (question.user) said.set("user", question.user);
  for (const id of question.history) said.append("history", id);
  if (question.like) said.set("like", question.like);
  if (Object.keys(question.filter).length) said.set("filter", JSON.stringify(question.filter));
  if (question.k !== 10) said.set("k", question.k);
  if (question.diversity) said.set("diversity", question.diversity);
  if (question.seen) said.set("seen", "1");
  return `#${said}`;
}

/** Takes the question from the address; what cannot be read there is left out. */
export function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  question.user = said.get("user") ?? "";
  question.history = said.getAll("history");
  question.like = said.get("like") ?? "";
  question.k = [5, 10, 20, 50].includes(Number(said.get("k"))) ? Number(said.get("k")) : 10;
  question.diversity = Math.min(1, Math.max(0, Number(said.get("diversity")) || 0));
  question.seen = said.has("seen");
  try {
    const filter = JSON.parse(said.get("filter") ?? "{}");
    question.filter = filter && typeof filter === "object" && !Array.isArray(filter) ? filter : {};
  } catch {
    question.filter = {};
  }
}

/** The users asked for in this tab, the newest first. */
export function recentUsers(user) {
  let recent = [];
  try {
    recent = JSON.parse(sessionStorage.getItem(RECENT) ?? "[]");
  } catch {
    /* of another version of this page */
  }
  if (user) {
    recent = [user, ...recent.filter((one) => one !== user)].slice(0, 20);
    sessionStorage.setItem(RECENT, JSON.stringify(recent));
  }
  return recent;
}
