#include "refusal.h"

namespace fastnn {

namespace {

char message[256] = "";
uint32_t length = 0;

void append(char c) {
  if (length + 1 < sizeof(message)) message[length++] = c;
  message[length] = 0;
}

}  // namespace

Refusal::Refusal(const char* op) {
  length = 0;
  *this << op << ": ";
}

Refusal& Refusal::operator<<(const char* text) {
  for (; *text; ++text) append(*text);
  return *this;
}

Refusal& Refusal::operator<<(int32_t number) {
  int64_t rest = number;
  if (rest < 0) append('-');
  if (rest < 0) rest = -rest;
  char digits[10];
  int count = 0;
  do digits[count++] = static_cast<char>('0' + rest % 10);
  while (rest /= 10);
  while (count) append(digits[--count]);
  return *this;
}

}  // namespace fastnn

const char* fastnn_message() { return fastnn::message; }
